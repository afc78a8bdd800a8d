//! Local changes: changes that a host makes while the registry does not answer. The host saves
//! them on its own disk and puts them in force at once. When the registry answers again, it
//! reconciles them there.
//!
//! Only changes that take something away from viewers are allowed without the registry.

use super::artifact::{Digest, PolicyRef};
use super::quarantine::Quarantine;
use crate::time::UnixMs;
use crate::time::rfc3339;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

/// Kinds of changes that a host may make without the registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Intent {
    Rollback {
        from: PolicyRef,
        to: PolicyRef,
        reason: String,
    },
    StopExperiment {
        key: String,
    },
    Quarantine {
        digest: Digest,
        quarantine: Quarantine,
    },
}

impl Intent {
    /// Returns the name of the changed object, as in the audit log.
    pub fn subject(&self) -> String {
        match self {
            Self::Rollback { from, .. } => from.to_string(),
            Self::StopExperiment { key } => key.clone(),
            Self::Quarantine { quarantine, .. } => quarantine.policy.to_string(),
        }
    }
}

/// A change that one host made while the registry did not answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalChange {
    pub id: Uuid,
    /// Id of the host, from its data directory.
    pub host: String,
    pub intent: Intent,
    pub actor: String,
    pub made_at_ms: UnixMs,
    /// Newest revision of the registry that this host knew.
    pub base_revision: i64,
    /// Hash of the audit entry of that revision. A registry that was restored from a backup may
    /// have the same revision again with another entry. Absent in changes of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_head: Option<Digest>,
}

impl LocalChange {
    /// Returns the marker of this change in the audit log. The entry with this id records if the
    /// change was applied or dropped.
    pub fn mark(&self) -> Value {
        json!({ "id": self.id, "host": self.host, "made_at": rfc3339(self.made_at_ms) })
    }
}
