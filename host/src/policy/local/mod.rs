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
//!   by them, and what goes on although it was told to end does harm. What follows from a quarantine
//!   follows from it in the registry as well, and moves nothing that an operator did.
//!
//! What does not hold is dropped, with an audit entry that says why.

mod kept;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

pub use kept::LocalChanges;

use super::artifact::{Digest, PolicyRef};
use super::audit::AuditEntry;
use super::lifecycle::{Event, step};
use super::registry::{Change, Experiment, HOST, Quarantine, RegistryState};
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
    Quarantine {
        digest: Digest,
        quarantine: Quarantine,
    },
}

impl Intent {
    /// What `change` is meant to do; `None` for what nobody may do alone.
    pub fn of(change: &Change) -> Option<Self> {
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
            Change::PutExperiment { key, experiment } => {
                let is_stop = experiment.state == ExperimentState::Stopped;
                is_stop.then(|| Self::StopExperiment { key: key.clone() })
            }
            _ => None,
        }
    }

    /// What was changed, as in the audit log.
    pub fn subject(&self) -> String {
        match self {
            Self::Rollback { from, .. } => from.to_string(),
            Self::StopExperiment { key } => key.clone(),
            Self::Quarantine { quarantine, .. } => quarantine.policy.to_string(),
        }
    }

    /// The change that does this to `state`.
    ///
    /// # Errors
    /// Why there is nothing to do, or nothing that may be done.
    pub fn on(&self, state: &RegistryState) -> Result<Change, String> {
        match self {
            // The target that was right when this host was alone may be out of service now.
            Self::Rollback { from, reason, .. } => first_change(
                state,
                &Event::Rollback {
                    reason: reason.clone(),
                    expected_active: Some(from.clone()),
                },
            ),
            Self::StopExperiment { key } => stopped(state, key),
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

fn first_change(state: &RegistryState, event: &Event) -> Result<Change, String> {
    let (_, changes) = step(state, event).map_err(|refused| refused.to_string())?;
    let first = changes.into_iter().next();
    first.ok_or_else(|| "there is nothing to change".into())
}

fn stopped(state: &RegistryState, key: &str) -> Result<Change, String> {
    let Some(current) = state.experiments.get(key) else {
        return Err(format!("there is no experiment `{key}`"));
    };
    if !current.state.may_become(ExperimentState::Stopped) {
        return Err(format!("it is {} already", current.state.as_str()));
    }
    let experiment = Experiment {
        spec: current.spec.clone(),
        state: ExperimentState::Stopped,
    };
    Ok(Change::PutExperiment {
        key: key.to_owned(),
        experiment,
    })
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
        // Nobody's decision, but what followed from a quarantine.
        let is_automatic = entry.actor == HOST;
        if is_own || is_automatic || self.moved.is_some() {
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
