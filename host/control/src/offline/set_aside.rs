//! Local changes that the registry refuses for good. They are kept on this host's disk, because
//! an operator decides what becomes of them.

use nova_model::local_change::LocalChange;
use nova_model::time::UnixMs;
use nova_support::durable_file;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Number of changes that are kept. The oldest ones are forgotten.
const KEPT_MAX: usize = 20;
const FILE: &str = "set_aside_changes.json";

/// A local change that is no longer in force, because the registry refused it for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetAside {
    pub change: LocalChange,
    /// The registry's reason.
    pub reason: String,
    pub at_ms: UnixMs,
    /// True if the registry's audit log has an entry about it.
    pub is_audited: bool,
}

/// The changes that were set aside on this host, oldest first.
#[derive(Debug)]
pub(super) struct SetAsideChanges {
    path: PathBuf,
    list: Mutex<Vec<SetAside>>,
}

impl SetAsideChanges {
    /// Opens the changes saved in `directory`. A damaged file is renamed, not deleted.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if a damaged file cannot be renamed.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let list = durable_file::read_json_or_put_aside(
            &path,
            "changes of this host that the registry refused for good",
        )?;
        Ok(Self {
            path,
            list: Mutex::new(list.unwrap_or_default()),
        })
    }

    pub fn list(&self) -> Vec<SetAside> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.clone()
    }

    /// Adds a change. The change is durable when this returns.
    ///
    /// # Errors
    /// Fails if the disk write fails.
    pub async fn add(&self, change: SetAside) -> anyhow::Result<()> {
        let mut list = self.list();
        // The host may have ended after it added the change and before it removed it from the
        // local changes.
        list.retain(|kept| kept.change.id != change.change.id);
        list.push(change);
        list.drain(..list.len().saturating_sub(KEPT_MAX));
        durable_file::write_json(self.path.clone(), &list).await?;
        *self.list.lock().unwrap_or_else(PoisonError::into_inner) = list;
        Ok(())
    }
}
