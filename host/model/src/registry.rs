//! The registry interface: the published policies, the active policy, experiments, cohorts,
//! flags, and the audit log of all changes. All hosts that share a registry take its state as
//! authoritative.

use super::artifact::{Digest, PolicyRef, PolicySpec};
use super::audit_head::AuditHead;
use crate::experiments::cohort::Rule;
use crate::experiments::spec::{ExperimentSpec, ExperimentState};
use crate::local_change::LocalChange;
use crate::measured::Record as Measured;
use crate::quarantine::{Lift, Quarantine, Withdrawal};
use crate::time::UnixMs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The whole registry except the module bytes and the audit log. It is small enough to be read
/// as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
// The last good state on a host's disk may have been written before a field existed.
#[serde(default)]
pub struct RegistryState {
    /// Grows with every change.
    pub revision: i64,
    /// Hash of the audit entry of this revision. It tells apart two states with one revision, of
    /// which a restored backup made the second. Absent in states of older versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<Digest>,
    pub policies: Vec<PublishedPolicy>,
    /// Stack of activations, the active policy last. A rollback removes entries from the end.
    pub activations: Vec<PolicyRef>,
    pub canary: Option<Canary>,
    pub shadows: BTreeSet<PolicyRef>,
    pub retired: BTreeSet<PolicyRef>,
    /// Quarantines by effective digest, so that a policy with the same behaviour is quarantined
    /// under every name.
    pub quarantined: BTreeMap<Digest, Quarantine>,
    /// Digests that hosts took out of their own service, by the id of the host.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub withdrawals: BTreeMap<Digest, BTreeMap<String, Withdrawal>>,
    /// The latest lift of each digest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub lifts: BTreeMap<Digest, Lift>,
    pub experiments: BTreeMap<String, Experiment>,
    pub cohorts: BTreeMap<String, Rule>,
    /// Flags that an operator has set. The others have their configured values.
    pub flags: BTreeMap<String, bool>,
}

impl RegistryState {
    /// Returns the end of the audit log to which this state belongs.
    pub fn audit_head(&self) -> AuditHead {
        AuditHead {
            revision: self.revision,
            hash: self.head,
        }
    }

    pub fn policy(&self, policy: &PolicyRef) -> Option<&PublishedPolicy> {
        self.policies
            .iter()
            .find(|published| published.spec.policy == *policy)
    }

    /// Applies a change to the state. Every store implements the same rules in its own query
    /// language, and a test checks that they agree. The store sets the revision.
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
            Change::Withdraw {
                digest,
                host,
                withdrawal,
            } => {
                let by_host = self.withdrawals.entry(*digest).or_default();
                by_host
                    .entry(host.clone())
                    .or_insert_with(|| withdrawal.clone());
            }
            Change::Lift { digest, lift } => {
                self.quarantined.remove(digest);
                self.withdrawals.remove(digest);
                self.lifts.insert(*digest, lift.clone());
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
            Change::Prune { policies, .. } => {
                self.replace_policies(&policies.iter().cloned().collect(), []);
                self.activations.retain(|policy| !policies.contains(policy));
            }
            Change::Reconciled { change, .. } => self.apply(change),
            Change::Dropped { .. } => {}
        }
    }

    fn publish(&mut self, published: PublishedPolicy) {
        self.policies.push(published);
        self.sort_policies();
    }

    /// Replaces the policies with these names by those that were found. The others were removed.
    pub fn replace_policies(
        &mut self,
        names: &BTreeSet<PolicyRef>,
        found: impl IntoIterator<Item = PublishedPolicy>,
    ) {
        self.policies
            .retain(|published| !names.contains(&published.spec.policy));
        self.policies.extend(found);
        self.sort_policies();
    }

    fn sort_policies(&mut self) {
        self.policies.sort_by_cached_key(|p| {
            let PolicyRef { name, version } = &p.spec.policy;
            (p.published_at_ms, name.clone(), version.to_string())
        });
    }

    fn end_trial(&mut self, policy: &PolicyRef) {
        self.shadows.remove(policy);
        self.canary.take_if(|canary| canary.policy == *policy);
    }

    /// Truncates the stack after the newest activation of `to` below the active policy.
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
    /// Share of the viewers who are in no experiment, above 0 and at most 100.
    pub percent: f64,
}

/// A stage that a policy is stored with. The other states follow from activations and quarantines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyStage {
    Shadow,
    Canary,
    Retired,
}

impl PolicyStage {
    /// Returns the stored form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Canary => "canary",
            Self::Retired => "retired",
        }
    }
}

/// Restores the stage of a policy from its stored form.
///
/// # Errors
/// Fails if the policy is not a reference, or if the stage is unknown, because a newer host wrote
/// it.
pub fn put_stage(
    state: &mut RegistryState,
    policy: &str,
    stage: &str,
    percent: Option<f64>,
) -> Result<(), String> {
    let policy: PolicyRef = policy.parse()?;
    match (stage, percent) {
        ("shadow", None) => drop(state.shadows.insert(policy)),
        ("retired", None) => drop(state.retired.insert(policy)),
        ("canary", Some(percent)) => state.canary = Some(Canary { policy, percent }),
        _ => return Err(format!("{policy} is in the unknown stage `{stage}`")),
    }
    Ok(())
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

/// Actor of changes that a host makes without a request.
pub const HOST: &str = "host";

/// One change, applied and audited in one transaction.
#[derive(Debug, Clone)]
pub enum Change {
    Publish {
        spec: PolicySpec,
        digest: Digest,
        modules: Vec<(Digest, Vec<u8>)>,
        at_ms: UnixMs,
        /// Measurements of the admission, for the audit log. `None` if the policy needed no
        /// trial because the same one was tried before.
        measured: Option<Box<Measured>>,
    },
    Activate {
        policy: PolicyRef,
    },
    /// Removes the active policy from the stack.
    Rollback {
        from: PolicyRef,
        to: PolicyRef,
        reason: String,
    },
    /// Ranks the same live candidates as the active policy and serves no viewer.
    Shadow {
        policy: PolicyRef,
    },
    /// Serves this share of viewers. 0 ends a canary or a shadow.
    Canary {
        policy: PolicyRef,
        percent: f64,
    },
    Retire {
        policy: PolicyRef,
    },
    /// Takes the digest out of service, under every name.
    Quarantine {
        digest: Digest,
        quarantine: Quarantine,
    },
    /// Records that a host took the digest out of its own service.
    Withdraw {
        digest: Digest,
        /// Id of the host.
        host: String,
        withdrawal: Withdrawal,
    },
    /// Ends the quarantine of the digest and its withdrawals on all hosts.
    Lift {
        digest: Digest,
        lift: Lift,
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
    /// Removes versions and modules that nothing uses.
    Prune {
        policies: Vec<PolicyRef>,
        modules: Vec<Digest>,
    },
    /// A local change of a host, recorded after the registry was unavailable.
    Reconciled {
        change: Box<Change>,
        local: LocalChange,
    },
    /// A local change of a host that no longer applies. It changes only the audit log.
    Dropped {
        local: LocalChange,
        why: String,
    },
}

impl Change {
    /// `action` of a local change that was dropped.
    pub const DROPPED: &str = "dropped";

    /// Returns the `action` of the audit entry.
    pub fn action(&self) -> &'static str {
        match self {
            Change::Publish { .. } => "publish",
            Change::Activate { .. } => "activate",
            Change::Rollback { .. } => "rollback",
            Change::Shadow { .. } => "shadow",
            Change::Canary { .. } => "canary",
            Change::Retire { .. } => "retire",
            Change::Quarantine { .. } => "quarantine",
            Change::Withdraw { .. } => "withdraw",
            Change::Lift { .. } => "lift",
            Change::PutExperiment { .. } => "put_experiment",
            Change::PutCohort { .. } => "put_cohort",
            Change::SetFlag { .. } => "set_flag",
            Change::Prune { .. } => "prune",
            Change::Reconciled { change, .. } => change.action(),
            Change::Dropped { .. } => Self::DROPPED,
        }
    }

    /// Returns the `subject` of the audit entry: the changed object.
    pub fn subject(&self) -> String {
        match self {
            Change::Publish { spec, .. } => spec.policy.to_string(),
            Change::Activate { policy }
            | Change::Shadow { policy }
            | Change::Canary { policy, .. }
            | Change::Retire { policy } => policy.to_string(),
            Change::Quarantine { quarantine, .. } => quarantine.policy.to_string(),
            Change::Withdraw { withdrawal, .. } => withdrawal.policy.to_string(),
            Change::Lift { lift, .. } => lift.policy.to_string(),
            Change::Rollback { from, .. } => from.to_string(),
            Change::PutExperiment { key, .. } | Change::PutCohort { key, .. } => key.clone(),
            Change::SetFlag { name, .. } => name.clone(),
            Change::Prune { .. } => "registry".to_owned(),
            Change::Reconciled { change, .. } => change.subject(),
            Change::Dropped { local, .. } => local.intent.subject(),
        }
    }

    /// Returns the `detail` of the audit entry.
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
            Change::Withdraw {
                digest,
                host,
                withdrawal,
            } => serde_json::json!({
                "digest": digest,
                "host": host,
                "reason": withdrawal.reason,
                "is_only_host": withdrawal.is_only_host,
            }),
            Change::Lift { digest, lift } => {
                serde_json::json!({ "digest": digest, "reason": lift.reason })
            }
            Change::Rollback { to, reason, .. } => {
                serde_json::json!({ "to": to, "reason": reason })
            }
            Change::PutExperiment { experiment, .. } => serde_json::json!(experiment),
            Change::PutCohort { rule, .. } => serde_json::json!(rule),
            Change::SetFlag { enabled, .. } => serde_json::json!({ "enabled": enabled }),
            Change::Prune { policies, modules } => {
                serde_json::json!({ "policies": policies, "modules": modules })
            }
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
