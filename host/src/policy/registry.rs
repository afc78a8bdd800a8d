//! The registry: which policies are published, which one is active, which experiments, cohorts
//! and flags there are, and who changed what. One truth for all hosts that share it.

use super::admission::Record as Measured;
use super::artifact::{Digest, PolicyRef, PolicySpec};
use super::audit::{AuditEntry, AuditPage};
use super::local::{LocalChange, LocalChanges};
use crate::experiments::cohort::Rule;
use crate::experiments::spec::{ExperimentSpec, ExperimentState};
use crate::stores::UnixMs;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Everything but module bytes and the audit log: small enough to be read whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
// A host's last good state on disk may be older than a field.
#[serde(default)]
pub struct RegistryState {
    /// Grows with every change.
    pub revision: i64,
    pub policies: Vec<PublishedPolicy>,
    /// Activations, the active policy last. Rollback takes from the end.
    pub activations: Vec<PolicyRef>,
    pub canary: Option<Canary>,
    pub shadows: BTreeSet<PolicyRef>,
    pub retired: BTreeSet<PolicyRef>,
    /// By effective digest: equal behaviour is quarantined under every name.
    pub quarantined: BTreeMap<Digest, Quarantine>,
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

    /// What a change means. The stores do the same in their own words, and a test holds them to it.
    /// The revision is the store's to give.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Publish {
                spec,
                digest,
                at_ms,
                ..
            } => self.publish(PublishedPolicy {
                spec: spec.clone(),
                digest: *digest,
                published_at_ms: *at_ms,
            }),
            Change::Activate { policy } => {
                self.end_trial(policy);
                self.activations.push(policy.clone());
            }
            Change::Rollback { to, .. } => {
                self.end_trial(to);
                self.return_to(to);
            }
            Change::Shadow { policy } => {
                self.end_trial(policy);
                self.retired.remove(policy);
                self.shadows.insert(policy.clone());
            }
            Change::Canary { policy, percent } => {
                self.end_trial(policy);
                if *percent > 0.0 {
                    self.retired.remove(policy);
                    self.canary = Some(Canary {
                        policy: policy.clone(),
                        percent: *percent,
                    });
                }
            }
            Change::Retire { policy } => {
                self.end_trial(policy);
                self.retired.insert(policy.clone());
            }
            Change::Quarantine { digest, quarantine } => {
                let equal = self.policies.iter().filter(|p| p.digest == *digest);
                for policy in equal.map(|p| p.spec.policy.clone()).collect::<Vec<_>>() {
                    self.end_trial(&policy);
                }
                self.quarantined
                    .entry(*digest)
                    .or_insert_with(|| quarantine.clone());
            }
            Change::PutExperiment { key, experiment } => {
                self.experiments.insert(key.clone(), experiment.clone());
            }
            Change::PutCohort { key, rule } => {
                self.cohorts.insert(key.clone(), rule.clone());
            }
            Change::SetFlag { name, enabled } => {
                self.flags.insert(name.clone(), *enabled);
            }
            Change::Reconciled { change, .. } => self.apply(change),
            Change::Dropped { .. } => {}
        }
    }

    fn publish(&mut self, published: PublishedPolicy) {
        self.policies.push(published);
        self.policies.sort_by_cached_key(|p| {
            let PolicyRef { name, version } = &p.spec.policy;
            (p.published_at_ms, name.clone(), version.to_string())
        });
    }

    fn end_trial(&mut self, policy: &PolicyRef) {
        self.shadows.remove(policy);
        self.canary.take_if(|canary| canary.policy == *policy);
    }

    /// Takes off the stack whatever lies above the last activation of `to` but the top one.
    fn return_to(&mut self, to: &PolicyRef) {
        let below = self.activations.len().saturating_sub(1);
        let at = self.activations[..below].iter().rposition(|p| p == to);
        if let Some(at) = at {
            self.activations.truncate(at + 1);
        }
    }
}

/// A policy that some viewers get instead of the active one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    pub policy: PolicyRef,
    /// Of the viewers whom no experiment takes, above 0 and at most 100.
    pub percent: f64,
}

/// Where a store says that a policy stands, put back into a state.
///
/// # Errors
/// A stage nobody knows: a newer host wrote it.
pub fn put_stage(
    state: &mut RegistryState,
    policy: PolicyRef,
    stage: &str,
    percent: Option<f64>,
) -> Result<(), String> {
    match (stage, percent) {
        ("shadow", None) => drop(state.shadows.insert(policy)),
        ("retired", None) => drop(state.retired.insert(policy)),
        ("canary", Some(percent)) => state.canary = Some(Canary { policy, percent }),
        _ => return Err(format!("{policy} stands at `{stage}`")),
    }
    Ok(())
}

/// Why nobody is served by a digest any more. There is no way back: changed behaviour has another digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Quarantine {
    /// Under this name it was caught.
    #[schema(value_type = String)]
    pub policy: PolicyRef,
    pub reason: String,
    /// The token's subject, `cli`, or `host`.
    pub by: String,
    pub at_ms: UnixMs,
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

/// The actor of what nobody asked for.
pub const HOST: &str = "host";

/// One change, carried out and audited in one transaction.
#[derive(Debug, Clone)]
pub enum Change {
    Publish {
        spec: PolicySpec,
        digest: Digest,
        modules: Vec<(Digest, Vec<u8>)>,
        at_ms: UnixMs,
        /// What admission measured, for the audit log; none of what was tried before.
        measured: Option<Box<Measured>>,
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
    /// Runs beside the active policy on live candidates and serves nobody.
    Shadow {
        policy: PolicyRef,
    },
    /// Serves this share of viewers; 0 ends a canary or a shadow.
    Canary {
        policy: PolicyRef,
        percent: f64,
    },
    Retire {
        policy: PolicyRef,
    },
    /// Serves nobody any more, whatever name it has.
    Quarantine {
        digest: Digest,
        quarantine: Quarantine,
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
            Change::Shadow { .. } => "shadow",
            Change::Canary { .. } => "canary",
            Change::Retire { .. } => "retire",
            Change::Quarantine { .. } => "quarantine",
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
            Change::Activate { policy }
            | Change::Shadow { policy }
            | Change::Canary { policy, .. }
            | Change::Retire { policy } => policy.to_string(),
            Change::Quarantine { quarantine, .. } => quarantine.policy.to_string(),
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
            Change::Publish {
                digest, measured, ..
            } => match measured {
                None => serde_json::json!({ "digest": digest }),
                Some(measured) => serde_json::json!({ "digest": digest, "measured": measured }),
            },
            Change::Activate { .. } | Change::Shadow { .. } | Change::Retire { .. } => {
                serde_json::json!({})
            }
            Change::Canary { percent, .. } => serde_json::json!({ "percent": percent }),
            Change::Quarantine { digest, quarantine } => {
                serde_json::json!({ "digest": digest, "reason": quarantine.reason })
            }
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
