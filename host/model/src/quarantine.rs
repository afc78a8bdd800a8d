//! The quarantine of a digest.

use super::artifact::PolicyRef;
use super::time::UnixMs;
use serde::{Deserialize, Serialize};

/// Quarantine of a digest, with its reason. It is final: changed behaviour has another digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Quarantine {
    /// Name under which the policy failed or was quarantined.
    #[schema(value_type = String)]
    pub policy: PolicyRef,
    pub reason: String,
    /// The token's subject, `cli`, or `host`.
    pub by: String,
    pub at_ms: UnixMs,
}
