//! A ranking that was just made, together with all of its inputs. The recorder stores it, and
//! shadow policies rank the same inputs for comparison.

use super::fallback_chain::{Ranked, RankingTask};
use nova_model::experiments::Assignment;
use nova_policy::loaded::LoadedPolicy;
use std::sync::Arc;
use uuid::Uuid;

#[derive(Debug)]
pub struct Decision {
    pub ranking_id: Uuid,
    pub request_id: Arc<str>,
    /// The policy chosen by routing. `None` if no policy was in service.
    pub routed: Option<Arc<LoadedPolicy>>,
    /// The policy to try next if the routed one fails.
    pub last_good: Option<Arc<LoadedPolicy>>,
    pub assignment: Option<Assignment>,
    pub task: RankingTask,
    pub ranked: Ranked,
}
