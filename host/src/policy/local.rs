//! Changes that a host makes alone while the registry does not answer: kept on its own disk, in force
//! here at once, and carried out in the registry when it returns.
//!
//! Only what takes something away from viewers is done alone. Whether it still makes sense when the
//! registry returns is decided here:
//!
//! - A **rollback** holds if nobody moved the active policy since. If somebody did, they knew more
//!   than this host: undoing them would be what `expected_active` is there to prevent. That the same
//!   policy is active is not enough: it may have been rolled back, mended and activated again.
//! - A **stop** holds whatever else happened to the experiment: stopped is for good, so nobody can be
//!   undone by it, and an experiment that runs on although it was told to stop does harm.
//!
//! What does not hold is dropped, with an audit entry that says why.

use super::artifact::PolicyRef;
use super::audit::AuditEntry;
use super::kept;
use super::registry::{Change, Experiment, RegistryState};
use crate::clock::rfc3339;
use crate::experiments::spec::ExperimentState;
use crate::metrics::METRICS;
use crate::stores::UnixMs;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
}

impl Intent {
    /// What was changed, as in the audit log.
    pub fn subject(&self) -> String {
        match self {
            Self::Rollback { from, .. } => from.to_string(),
            Self::StopExperiment { key } => key.clone(),
        }
    }

    /// The change that does this to `state`.
    ///
    /// # Errors
    /// Why there is nothing to do, or nothing that may be done.
    pub fn on(&self, state: &RegistryState) -> Result<Change, String> {
        match self {
            Self::Rollback { from, reason, .. } => match state.activations.as_slice() {
                [.., to, active] if active == from => Ok(Change::Rollback {
                    from: from.clone(),
                    to: to.clone(),
                    reason: reason.clone(),
                }),
                [.., active] if active != from => Err(format!("{active} is active, not {from}")),
                _ => Err(format!("there is nothing to go back to from {from}")),
            },
            Self::StopExperiment { key } => match state.experiments.get(key) {
                None => Err(format!("there is no experiment `{key}`")),
                Some(current) if !current.state.may_become(ExperimentState::Stopped) => {
                    Err(format!("it is {} already", current.state.as_str()))
                }
                Some(current) => Ok(Change::PutExperiment {
                    key: key.clone(),
                    experiment: Experiment {
                        spec: current.spec.clone(),
                        state: ExperimentState::Stopped,
                    },
                }),
            },
        }
    }
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

/// More than any operator makes in one outage; a script that runs wild stops here.
const LOCAL_CHANGES_MAX: usize = 100;
const FILE: &str = "local_changes.json";

/// The local changes of this host, oldest first. One task writes at a time.
#[derive(Debug)]
pub struct LocalChanges {
    path: PathBuf,
    /// The host's id, as in its changes.
    pub host: String,
    list: Mutex<Vec<LocalChange>>,
}

impl LocalChanges {
    /// What is kept in `directory`. A damaged file is put aside, not deleted.
    ///
    /// # Errors
    /// When a damaged file cannot be put aside.
    pub fn open(directory: &Path, host: String) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let list = kept::read_json(&path).or_else(|damaged| {
            let aside = path.with_extension("damaged");
            std::fs::rename(&path, &aside).with_context(|| damaged.to_string())?;
            tracing::error!(
                file = %aside.display(),
                "changes that this host made alone cannot be read; look into the file and make them again"
            );
            anyhow::Ok(None)
        })?;
        let changes = Self {
            path,
            host,
            list: Mutex::new(list.unwrap_or_default()),
        };
        changes.show();
        Ok(changes)
    }

    pub fn list(&self) -> Vec<LocalChange> {
        self.locked().clone()
    }

    pub fn first(&self) -> Option<LocalChange> {
        self.locked().first().cloned()
    }

    pub fn is_empty(&self) -> bool {
        self.locked().is_empty()
    }

    /// Durable when this returns.
    ///
    /// # Errors
    /// When there are too many, or the disk does not take it.
    pub async fn add(&self, change: LocalChange) -> anyhow::Result<()> {
        let mut list = self.list();
        anyhow::ensure!(
            list.len() < LOCAL_CHANGES_MAX,
            "this host keeps {LOCAL_CHANGES_MAX} changes already, and no more"
        );
        list.push(change);
        self.replace(list).await
    }

    /// Removes a change that is settled.
    ///
    /// # Errors
    /// When the disk does not take it; the change is then found settled the next time.
    pub async fn remove(&self, id: Uuid) -> anyhow::Result<()> {
        let mut list = self.list();
        list.retain(|change| change.id != id);
        self.replace(list).await
    }

    async fn replace(&self, list: Vec<LocalChange>) -> anyhow::Result<()> {
        kept::write_json(self.path.clone(), &list).await?;
        *self.locked() = list;
        self.show();
        Ok(())
    }

    fn locked(&self) -> MutexGuard<'_, Vec<LocalChange>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self) {
        let count = i64::try_from(self.locked().len()).unwrap_or(i64::MAX);
        METRICS.registry_local_changes.set(count);
    }
}
