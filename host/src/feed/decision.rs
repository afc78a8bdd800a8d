//! A ranking that was just made, with everything it was made from: what may be recorded, and what a shadow ranks beside.

use super::ladder::{Job, Ranked};
use crate::experiments::routing::Assignment;
use crate::policy::loaded::LoadedPolicy;
use std::sync::Arc;
use uuid::Uuid;

#[derive(Debug)]
pub struct Decision {
    pub ranking_id: Uuid,
    pub request_id: Arc<str>,
    /// The policy that was to rank; `None` when no policy was in service.
    pub routed: Option<Arc<LoadedPolicy>>,
    /// The one to rank if it failed.
    pub last_good: Option<Arc<LoadedPolicy>>,
    pub assignment: Option<Assignment>,
    pub job: Job,
    pub ranked: Ranked,
}
