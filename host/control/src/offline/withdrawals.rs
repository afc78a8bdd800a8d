//! Withdrawals of this host: the digests that it took out of its own service. They are on its
//! disk, because a restart must not bring a failing policy back, and the registry may be
//! unavailable.

use nova_model::artifact::Digest;
use nova_model::quarantine::Quarantine;
use nova_model::registry::{Change, RegistryState};
use nova_model::withdrawal::{OwnWithdrawal, withdrawn_on};
use nova_support::durable_file;
use nova_support::metrics::METRICS;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const FILE: &str = "withdrawals.json";
const FORMAT: u32 = 1;
/// Maximum number of withdrawals that a host remembers. Few policies serve at once, so the oldest
/// of so many are long forgotten by everything else.
const WITHDRAWALS_MAX: usize = 100;
/// Name of a host whose registry belongs to it alone.
const ONLY_HOST: &str = "embedded";

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    withdrawals: Vec<OwnWithdrawal>,
}

#[derive(Debug)]
pub struct Withdrawals {
    /// Id of this host, as the registry has it.
    host: String,
    /// File of the withdrawals. `None` if the registry is on this host's disk, which then has
    /// them.
    path: Option<PathBuf>,
    own: Mutex<Vec<OwnWithdrawal>>,
    /// True if the file lacks a change.
    is_unsaved: AtomicBool,
    /// True if this host is the only one that the registry saw lately. False if that is unknown.
    is_only_host: AtomicBool,
}

impl Withdrawals {
    /// Opens the withdrawals saved in `directory`. A damaged file is renamed, not deleted.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if a damaged file cannot be renamed.
    pub fn open(directory: &Path, host: String) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let stored: Option<Stored> = durable_file::read_json_or_put_aside(
            &path,
            "policies that this host took out of its service; the registry still has those that were reported",
        )?;
        let own = stored.map_or_else(Vec::new, |stored| stored.withdrawals);
        Ok(Self {
            path: Some(path),
            own: Mutex::new(own),
            ..Self::of_only_host(host, false)
        })
    }

    /// Creates the withdrawals of a host that shares its registry with no other.
    pub fn embedded() -> Self {
        Self::of_only_host(ONLY_HOST.to_owned(), true)
    }

    fn of_only_host(host: String, is_only_host: bool) -> Self {
        Self {
            host,
            path: None,
            own: Mutex::default(),
            is_unsaved: AtomicBool::new(false),
            is_only_host: AtomicBool::new(is_only_host),
        }
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn set_only_host(&self, is_only_host: bool) {
        self.is_only_host.store(is_only_host, Ordering::Release);
    }

    /// Adds a withdrawal. The oldest is forgotten if there are too many.
    pub fn add(&self, withdrawal: OwnWithdrawal) {
        let mut own = self.locked();
        own.retain(|known| known.digest != withdrawal.digest);
        if own.len() >= WITHDRAWALS_MAX {
            let oldest = own.remove(0);
            tracing::warn!(policy = %oldest.policy, digest = %oldest.digest, "this host remembers too many withdrawals; forgetting the oldest");
        }
        own.push(withdrawal);
        self.is_unsaved.store(true, Ordering::Release);
    }

    /// Forgets the withdrawals that the registry's state settles.
    pub fn settle(&self, state: &RegistryState) {
        let mut own = self.locked();
        let before = own.len();
        own.retain(|withdrawal| !withdrawal.is_settled(state));
        if own.len() < before {
            self.is_unsaved.store(true, Ordering::Release);
        }
    }

    /// Returns the changes that report the withdrawals to a registry in this state.
    pub fn missing_in(&self, state: &RegistryState) -> Vec<Change> {
        let is_only_host = self.is_only_host.load(Ordering::Acquire);
        let own = self.locked();
        let reports = own.iter();
        reports
            .filter_map(|withdrawal| withdrawal.report(&self.host, is_only_host, state))
            .collect()
    }

    /// Returns the digests that this host took out of its own service.
    pub fn in_force(&self, state: &RegistryState) -> BTreeMap<Digest, Quarantine> {
        let withdrawn = withdrawn_on(&self.host, &self.locked(), state);
        METRICS
            .policy_withdrawn
            .set(i64::try_from(withdrawn.len()).unwrap_or(i64::MAX));
        withdrawn
    }

    /// Saves the withdrawals on this host's disk, if they changed since the last time.
    ///
    /// # Errors
    /// Fails if the disk write fails. The next call tries again.
    pub async fn save(&self) -> anyhow::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        if !self.is_unsaved.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let stored = Stored {
            format: FORMAT,
            withdrawals: self.locked().clone(),
        };
        let written = durable_file::write_json(path.clone(), &stored).await;
        if written.is_err() {
            self.is_unsaved.store(true, Ordering::Release);
        }
        written
    }

    fn locked(&self) -> MutexGuard<'_, Vec<OwnWithdrawal>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;
