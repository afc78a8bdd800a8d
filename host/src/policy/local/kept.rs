//! The local changes of a host on its own disk.

use super::LocalChange;
use crate::metrics::METRICS;
use crate::policy::kept;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

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
    /// When the file cannot be read, or a damaged one not be put aside.
    pub fn open(directory: &Path, host: String) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let list = kept::read_json_or_put_aside(
            &path,
            "changes that this host made alone; look into the file and make them again",
        )?;
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
