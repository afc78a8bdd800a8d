//! The registry: which policies are published, which one is active, which experiments, cohorts
//! and flags there are, and who changed what. One truth for all hosts that share it.

use super::artifact::{Digest, PolicyRef, PolicySpec};
use super::audit::{AuditEntry, AuditPage};
use super::local::{LocalChange, LocalChanges};
use crate::experiments::cohort::Rule;
use crate::experiments::spec::{ExperimentSpec, ExperimentState};
use crate::stores::UnixMs;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything but module bytes and the audit log: small enough to be read whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RegistryState {
    /// Grows with every change.
    pub revision: i64,
    pub policies: Vec<PublishedPolicy>,
    /// Activations, the active policy last. Rollback takes from the end.
    pub activations: Vec<PolicyRef>,
    pub experiments: BTreeMap<String, Experiment>,
    pub cohorts: BTreeMap<String, Rule>,
    /// Flags that an operator has set; the others have their configured values.
    pub flags: BTreeMap<String, bool>,
}

impl RegistryState {
    pub fn policy(&self, policy: &PolicyRef) -> Option<&PublishedPolicy> {
        self.policies
            .iter()
            .find(|published| published.spec.policy == *policy)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PublishedPolicy {
    pub spec: PolicySpec,
    pub digest: Digest,
    pub published_at_ms: UnixMs,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    pub spec: ExperimentSpec,
    pub state: ExperimentState,
}

/// One change, carried out and audited in one transaction.
#[derive(Debug, Clone)]
pub enum Change {
    Publish {
        spec: PolicySpec,
        digest: Digest,
        modules: Vec<(Digest, Vec<u8>)>,
    },
    Activate {
        policy: PolicyRef,
    },
    /// Takes the active policy off the stack.
    Rollback {
        from: PolicyRef,
        to: PolicyRef,
        reason: String,
    },
    PutExperiment {
        key: String,
        experiment: Experiment,
    },
    PutCohort {
        key: String,
        rule: Rule,
    },
    SetFlag {
        name: String,
        enabled: bool,
    },
    /// What a host did alone while the registry was away.
    Reconciled {
        change: Box<Change>,
        local: LocalChange,
    },
    /// What a host did alone and what does not hold any more; changes nothing but the audit log.
    Dropped {
        local: LocalChange,
        why: String,
    },
}

impl Change {
    /// The `action` of a local change that was not carried out.
    pub const DROPPED: &str = "dropped";

    /// The audit log's `action`.
    pub fn action(&self) -> &'static str {
        match self {
            Change::Publish { .. } => "publish",
            Change::Activate { .. } => "activate",
            Change::Rollback { .. } => "rollback",
            Change::PutExperiment { .. } => "put_experiment",
            Change::PutCohort { .. } => "put_cohort",
            Change::SetFlag { .. } => "set_flag",
            Change::Reconciled { change, .. } => change.action(),
            Change::Dropped { .. } => Self::DROPPED,
        }
    }

    /// The audit log's `subject`: what was changed.
    pub fn subject(&self) -> String {
        match self {
            Change::Publish { spec, .. } => spec.policy.to_string(),
            Change::Activate { policy } => policy.to_string(),
            Change::Rollback { from, .. } => from.to_string(),
            Change::PutExperiment { key, .. } | Change::PutCohort { key, .. } => key.clone(),
            Change::SetFlag { name, .. } => name.clone(),
            Change::Reconciled { change, .. } => change.subject(),
            Change::Dropped { local, .. } => local.intent.subject(),
        }
    }

    /// The audit log's `detail`.
    pub fn detail(&self) -> serde_json::Value {
        match self {
            Change::Publish { digest, .. } => serde_json::json!({ "digest": digest }),
            Change::Activate { .. } => serde_json::json!({}),
            Change::Rollback { to, reason, .. } => {
                serde_json::json!({ "to": to, "reason": reason })
            }
            Change::PutExperiment { experiment, .. } => serde_json::json!(experiment),
            Change::PutCohort { rule, .. } => serde_json::json!(rule),
            Change::SetFlag { enabled, .. } => serde_json::json!({ "enabled": enabled }),
            Change::Reconciled { change, local } => {
                let mut detail = change.detail();
                detail["local"] = local.mark();
                detail
            }
            Change::Dropped { local, why } => {
                serde_json::json!({ "change": local.intent, "why": why, "local": local.mark() })
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The change was made against a state that is no longer.
    #[error("{0}")]
    Conflict(String),
    #[error("the registry is unavailable: {0:#}")]
    Unavailable(#[from] anyhow::Error),
}

#[async_trait]
pub trait Registry: Send + Sync + std::fmt::Debug + 'static {
    async fn load(&self) -> Result<RegistryState, RegistryError>;

    /// The revision alone: cheap enough to ask every second.
    async fn revision(&self) -> Result<i64, RegistryError>;

    /// Carries out a change if the registry is still at `expected_revision`.
    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        expected_revision: i64,
    ) -> Result<i64, RegistryError>;

    async fn module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError>;

    /// A part of the audit log, at most `limit` entries.
    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError>;

    /// Where a host keeps what it does alone while the registry does not answer; `None` where it cannot.
    fn local_changes(&self) -> Option<&LocalChanges> {
        None
    }

    /// Returns when another process may have changed something. A registry that cannot tell never
    /// returns; whoever waits here looks now and then all the same.
    async fn changed(&self) {
        std::future::pending().await
    }
}
