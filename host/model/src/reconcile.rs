//! Reconciliation: the rules that decide if a local change still applies when the registry is
//! available again.
//!
//! - A **rollback** applies if no other operator moved the active policy since. An operator who
//!   moved it knew more than this host, and `expected_active` exists so that such a decision is
//!   not undone. A check that the same policy is active is not enough, because it may have been
//!   rolled back, repaired and activated again.
//! - A **stop** and a **quarantine** always apply. Both are final, so they undo no other
//!   operator's change. An experiment or a policy that continues after it was stopped does harm.
//!   The consequences of a quarantine are derived from it in the registry as well, and they
//!   change nothing that an operator set.
//!
//! A change that no longer applies is dropped. An audit entry records the reason.

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

use super::audit::AuditEntry;
use super::lifecycle::{Event, step};
use super::local_change::{Intent, LocalChange};
use super::registry::{Change, Experiment, HOST, RegistryState};
use crate::experiments::spec::ExperimentState;
use serde_json::json;

impl Intent {
    /// Returns the intent of `change`. Returns `None` for a change that needs the registry.
    pub fn from_change(change: &Change) -> Option<Self> {
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

    /// Returns the change that carries out this intent on `state`.
    ///
    /// # Errors
    /// Returns the reason why there is nothing to do or why it is not allowed.
    pub fn on(&self, state: &RegistryState) -> Result<Change, String> {
        match self {
            // The target is computed again, because the one that this host chose without the
            // registry may be out of service now.
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

/// Relevant entries of the registry's audit log since a local change was made.
#[derive(Debug, Default, PartialEq)]
pub struct Since {
    /// Id of the newest entry that was read.
    pub revision: i64,
    /// True if the log has an entry for this change already. A host may end after it applied the
    /// change and before it removed it from its disk.
    pub is_reconciled: bool,
    /// First change that another host or operator made to the active policy.
    moved: Option<String>,
    /// True if the log has another entry at the revision on which the change is based: the
    /// registry was restored from a backup and changed since.
    is_other_log: bool,
}

impl Since {
    /// Begins before the entry of the base revision, if its hash is known, so that it is compared.
    pub fn new(change: &LocalChange) -> Self {
        let compared = change.base_head.map_or(0, |_| 1);
        Self {
            revision: change.base_revision - compared,
            ..Self::default()
        }
    }

    /// Reads the next entry. Entries must come oldest first.
    pub fn read(&mut self, change: &LocalChange, entry: &AuditEntry) {
        self.revision = entry.id;
        if entry.id <= change.base_revision {
            self.is_other_log |= change.base_head != entry.hash;
            return;
        }
        let local = &entry.detail["local"];
        self.is_reconciled |= local["id"] == json!(change.id);
        // This change was made on top of the same host's earlier changes, so they do not
        // conflict with it.
        let is_own = local["host"] == json!(change.host);
        // The host made this entry as a consequence of a quarantine. It is no operator's
        // decision.
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

/// Returns the change that records a local change in the registry. `state` is the registry's
/// state, and `since` must cover its log up to that state.
pub fn reconciled(local: &LocalChange, state: &RegistryState, since: &Since) -> Change {
    let put_back = since.is_other_log || state.revision < local.base_revision;
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
