//! The quarantine of a digest everywhere, its withdrawal on one host, and the lift that ends both.

use super::artifact::PolicyRef;
use super::time::UnixMs;
use serde::{Deserialize, Serialize};

/// Quarantine of a digest on every host, with its reason. It lasts until an operator lifts it.
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

/// A host's decision to take a digest out of its own service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    /// Name under which the policy failed.
    pub policy: PolicyRef,
    pub reason: String,
    pub at_ms: UnixMs,
    /// True if the host was the only one that the registry had seen lately, when it reported the
    /// withdrawal. Then no second host has to agree.
    #[serde(default)]
    pub is_only_host: bool,
}

/// An operator's decision that a digest may serve again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lift {
    pub policy: PolicyRef,
    pub reason: String,
    /// The token's subject, or `cli`.
    pub by: String,
    pub at_ms: UnixMs,
    /// Revision of the registry on which the operator decided. A withdrawal that a host made at
    /// this revision or an older one has ended.
    pub base_revision: i64,
}
