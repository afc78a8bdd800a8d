//! Changes that a host makes alone while the registry does not answer: kept on its own disk, in force
//! here at once, and carried out in the registry when it returns.
//!
//! Only what takes something away from viewers is done alone. Whether it still makes sense when the
//! registry returns is decided here:
//!
//! - A **rollback** holds if nobody moved the active policy since. If somebody did, they knew more
//!   than this host: undoing them would be what `expected_active` is there to prevent. That the same
//!   policy is active is not enough: it may have been rolled back, mended and activated again.
//! - A **stop** and a **quarantine** hold whatever else happened: both are for good, so nobody can be undone
//!   by them, and what goes on although it was told to end does harm. The pause of an experiment that
//!   follows from a quarantine holds for as long as that is its reason.
//!
//! What does not hold is dropped, with an audit entry that says why.

mod kept;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

pub use kept::LocalChanges;

use super::artifact::{Digest, PolicyRef};
use super::audit::AuditEntry;
use super::registry::{Change, Experiment, Quarantine, RegistryState};
use crate::clock::rfc3339;
use crate::experiments::spec::ExperimentState;
use crate::stores::UnixMs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

/// What may be done without the registry.
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
    /// Because one of its policies is in quarantine.
    PauseExperiment {
        key: String,
    },
    Quarantine {
        digest: Digest,
        quarantine: Quarantine,
    },
}

impl Intent {
    /// What `change`, made on `state`, is meant to do; `None` for what nobody may do alone.
    pub fn of(change: &Change, state: &RegistryState) -> Option<Self> {
        match change {
            Change::Rollback { from, to, reason } => Some(Self::Rollback {
                from: from.clone(),
                to: to.clone(),
                reason: reason.clone(),
            }),
            Change::Quarantine { digest, quarantine } => Some(Self::Quarantine {
                digest: *digest,
                quarantine: quarantine.clone(),
            }),
            Change::PutExperiment { key, experiment } => match experiment.state {
                ExperimentState::Stopped => Some(Self::StopExperiment { key: key.clone() }),
                ExperimentState::Paused if has_quarantined(state, experiment) => {
                    Some(Self::PauseExperiment { key: key.clone() })
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// What was changed, as in the audit log.
    pub fn subject(&self) -> String {
        match self {
            Self::Rollback { from, .. } => from.to_string(),
            Self::StopExperiment { key } | Self::PauseExperiment { key } => key.clone(),
            Self::Quarantine { quarantine, .. } => quarantine.policy.to_string(),
        }
    }

    /// The change that does this to `state`.
    ///
    /// # Errors
    /// Why there is nothing to do, or nothing that may be done.
    pub fn on(&self, state: &RegistryState) -> Result<Change, String> {
        match self {
            Self::Rollback { from, reason, .. } => Ok(Change::Rollback {
                from: from.clone(),
                to: former(state, from)?.clone(),
                reason: reason.clone(),
            }),
            Self::StopExperiment { key } => become_state(state, key, ExperimentState::Stopped),
            Self::PauseExperiment { key } => become_state(state, key, ExperimentState::Paused),
            Self::Quarantine { digest, quarantine } => match state.quarantined.get(digest) {
                Some(known) => Err(format!("it is in quarantine already, by {}", known.by)),
                None => Ok(Change::Quarantine {
                    digest: *digest,
                    quarantine: quarantine.clone(),
                }),
            },
        }
    }
}

/// What was active before `from`, if that is active: the target that was right when this host was alone
/// may be in quarantine now.
fn former<'a>(state: &'a RegistryState, from: &PolicyRef) -> Result<&'a PolicyRef, String> {
    let Some((active, former)) = state.activations.split_last() else {
        return Err("nothing is active".into());
    };
    if active != from {
        return Err(format!("{active} is active, not {from}"));
    }
    let is_quarantined = |policy: &PolicyRef| {
        let digest = state.policy(policy).map(|published| published.digest);
        digest.is_some_and(|digest| state.quarantined.contains_key(&digest))
    };
    let to = former.iter().rev().find(|policy| !is_quarantined(policy));
    to.ok_or_else(|| format!("there is nothing to go back to from {from}"))
}

fn become_state(state: &RegistryState, key: &str, next: ExperimentState) -> Result<Change, String> {
    let Some(current) = state.experiments.get(key) else {
        return Err(format!("there is no experiment `{key}`"));
    };
    if !current.state.may_become(next) {
        return Err(format!("it is {}", current.state.as_str()));
    }
    if next == ExperimentState::Paused && !has_quarantined(state, current) {
        return Err("none of its policies is in quarantine".into());
    }
    let experiment = Experiment {
        spec: current.spec.clone(),
        state: next,
    };
    Ok(Change::PutExperiment {
        key: key.to_owned(),
        experiment,
    })
}

fn has_quarantined(state: &RegistryState, experiment: &Experiment) -> bool {
    let variations = experiment.spec.variations.iter();
    let digests = variations.filter_map(|variation| {
        let published = state.policy(&variation.policy)?;
        let Some(params) = variation.params.clone() else {
            return Some(published.digest);
        };
        Some(published.spec.with_overrides(&params.into()).digest())
    });
    let mut quarantined = digests.filter(|digest| state.quarantined.contains_key(digest));
    quarantined.next().is_some()
}

/// A change that one host made alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalChange {
    pub id: Uuid,
    /// The host, by the id in its data directory.
    pub host: String,
    pub intent: Intent,
    pub actor: String,
    pub made_at_ms: UnixMs,
    /// The registry's revision that this host knew.
    pub base_revision: i64,
}

impl LocalChange {
    /// How the audit log names it. An entry with this id is what became of it.
    pub fn mark(&self) -> Value {
        json!({ "id": self.id, "host": self.host, "made_at": rfc3339(self.made_at_ms) })
    }
}

/// What the registry's log says of the time since a local change was made.
#[derive(Debug, Default, PartialEq)]
pub struct Since {
    /// The newest entry that was read.
    pub revision: i64,
    /// Whether this very change has its entry already: a host may end between carrying it out and noting so.
    pub is_settled: bool,
    /// What another host or operator did first to the active policy.
    moved: Option<String>,
}

impl Since {
    pub fn new(base_revision: i64) -> Self {
        Self {
            revision: base_revision,
            ..Self::default()
        }
    }

    /// Takes in the next entry, oldest first.
    pub fn read(&mut self, change: &LocalChange, entry: &AuditEntry) {
        self.revision = entry.id;
        let local = &entry.detail["local"];
        self.is_settled |= local["id"] == json!(change.id);
        // This host's own earlier changes are what this one was made on.
        let is_own = local["host"] == json!(change.host);
        if is_own || self.moved.is_some() {
            return;
        }
        let (actor, subject, id) = (&entry.actor, &entry.subject, entry.id);
        self.moved = match entry.action.as_str() {
            "activate" => Some(format!(
                "{actor} activated {subject} meanwhile (entry {id})"
            )),
            "rollback" => Some(format!(
                "{actor} rolled {subject} back meanwhile (entry {id})"
            )),
            _ => None,
        };
    }
}

/// What a local change becomes in the registry, whose state is `state` and whose log is read up to it.
pub fn reconciled(local: &LocalChange, state: &RegistryState, since: &Since) -> Change {
    let put_back = state.revision < local.base_revision;
    let moved = since
        .moved
        .clone()
        .filter(|_| matches!(local.intent, Intent::Rollback { .. }));
    let change = match moved {
        _ if put_back => Err("the registry was put back to an older state".to_owned()),
        Some(moved) => Err(moved),
        None => local.intent.on(state),
    };
    match change {
        Ok(change) => Change::Reconciled {
            change: Box::new(change),
            local: local.clone(),
        },
        Err(why) => Change::Dropped {
            local: local.clone(),
            why,
        },
    }
}
