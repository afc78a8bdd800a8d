//! Storage of a host's local changes on its own disk.

use super::set_aside::{SetAside, SetAsideChanges};
use async_trait::async_trait;
use nova_model::local_change::LocalChange;
use nova_model::registry::RegistryState;
use nova_stores::embedded::registry::SqliteRegistry;
use nova_stores::ports::registry::Registry;
use nova_support::durable_file;
use nova_support::metrics::METRICS;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// Maximum number of local changes. No operator makes that many in one outage, so the limit
/// stops a runaway script.
const LOCAL_CHANGES_MAX: usize = 100;
const FILE: &str = "local_changes.json";

/// The registry as one host uses it.
#[async_trait]
pub trait HostRegistry: Registry {
    /// The changes that this host made while the registry was unavailable. `None` if this host
    /// makes none, so that every change then fails.
    fn local_changes(&self) -> Option<&LocalChanges> {
        None
    }

    /// Notes the state that is to be saved on this host's disk.
    fn note_state(&self, _state: &RegistryState) {}

    /// Saves the noted state, with the modules of its active policy. Returns when a start without
    /// the registry would serve this state or a newer one.
    async fn save_state(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Saves the other modules that the noted state needs. Returns true if all are saved.
    async fn save_modules(&self) -> bool {
        true
    }
}

/// The embedded registry is in the process: it is never unavailable.
impl HostRegistry for SqliteRegistry {}

/// Local changes of this host, oldest first. Only one task writes at a time.
#[derive(Debug)]
pub struct LocalChanges {
    path: PathBuf,
    /// The host's id, as in its changes.
    pub host: String,
    list: Mutex<Vec<LocalChange>>,
    set_aside: SetAsideChanges,
}

impl LocalChanges {
    /// Opens the changes saved in `directory`. A damaged file is renamed, not deleted.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if a damaged file cannot be renamed.
    pub fn open(directory: &Path, host: String) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let list = durable_file::read_json_or_put_aside(
            &path,
            "changes that this host made without the registry; read the file and make them again",
        )?;
        let changes = Self {
            set_aside: SetAsideChanges::open(directory)?,
            path,
            host,
            list: Mutex::new(list.unwrap_or_default()),
        };
        changes.show();
        Ok(changes)
    }

    /// Directory of the files that belong to this host's registry.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
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

    /// Adds a change. The change is durable when this returns.
    ///
    /// # Errors
    /// Fails if there are too many changes already, or if the disk write fails.
    pub async fn add(&self, change: LocalChange) -> anyhow::Result<()> {
        let mut list = self.list();
        anyhow::ensure!(
            list.len() < LOCAL_CHANGES_MAX,
            "this host already holds {LOCAL_CHANGES_MAX} changes for the registry, which is the limit; try again when the registry answers"
        );
        list.push(change);
        self.replace(list).await
    }

    /// Removes a change that was reconciled or set aside.
    ///
    /// # Errors
    /// Fails if the disk write fails. The next reconciliation then finds the change's entry in
    /// the audit log and does not apply it again.
    pub async fn remove(&self, id: Uuid) -> anyhow::Result<()> {
        let mut list = self.list();
        list.retain(|change| change.id != id);
        self.replace(list).await
    }

    /// The changes that the registry refused for good, oldest first. Only the newest are kept.
    pub fn set_aside(&self) -> Vec<SetAside> {
        self.set_aside.list()
    }

    /// Moves a change from the local changes to those that were set aside, which are not in
    /// force.
    ///
    /// # Errors
    /// Fails if a disk write fails. The change is then still a local change.
    pub async fn move_aside(&self, change: SetAside) -> anyhow::Result<()> {
        let id = change.change.id;
        self.set_aside.add(change).await?;
        self.remove(id).await
    }

    async fn replace(&self, list: Vec<LocalChange>) -> anyhow::Result<()> {
        durable_file::write_json(self.path.clone(), &list).await?;
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
        // The series exist from the start, so that a first increment counts.
        for outcome in ["applied", "dropped", "set_aside"] {
            METRICS
                .registry_local_changes_settled_total
                .with_label_values(&[outcome]);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;
