//! Changes of one host while its registry is unavailable: which of them are allowed, where they
//! are saved, how they overlay the registry's state, and how they are reconciled with the
//! registry when it answers. Three kinds exist:
//!
//! - **Local changes** are rollbacks, stops and quarantines on this host's disk
//!   ([`LocalChanges`]). The rules are in [`nova_model::local_change`]. A local change that the
//!   registry refuses for good is set aside (`set_aside.rs`), so that the host goes on following.
//! - **Quarantines decided here** are in memory until the registry has them (`quarantines.rs`).
//!   They are saved as local changes once the registry is known to be unavailable.
//! - **Withdrawals** are the digests that this host alone took out of service (`withdrawals.rs`).
//!   They are on its disk for as long as they hold, and are reported to the registry.
//!
//! Nothing here serves. The protocol around it and the order of the locks are in
//! `deploy/mod.rs`. The caller of a function that writes local changes holds the lock `changing`.

mod local_changes;
mod quarantines;
mod reconcile;
mod set_aside;
mod withdrawals;

pub use local_changes::{HostRegistry, LocalChanges};
pub use reconcile::Settled;
pub use set_aside::SetAside;
pub use withdrawals::Withdrawals;

use anyhow::Context as _;
use nova_model::artifact::Digest;
use nova_model::audit_head::AuditHead;
use nova_model::lifecycle::complete_quarantines;
use nova_model::local_change::{Intent, LocalChange};
use nova_model::quarantine::Quarantine;
use nova_model::registry::{Change, RegistryState};
use nova_model::time::UnixMs;
use nova_support::clock::unix_ms;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::Notify;
use uuid::Uuid;

/// Marks the error of an unavailable registry on a host that can make some changes without it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the registry does not answer; rollback, quarantine and stopping an experiment work on this host without it"
)]
pub struct RegistryUnavailable;

#[derive(Debug)]
pub struct Offline {
    registry: Arc<dyn HostRegistry>,
    /// Quarantines decided on this host that the registry may not have yet.
    quarantines: Mutex<BTreeMap<Digest, Quarantine>>,
    /// Digests that this host took out of its own service.
    pub withdrawals: Withdrawals,
    /// Time at which this host last noted its presence in the registry.
    present_at: Mutex<Option<Instant>>,
    /// True if the registry misses a quarantine, or a change that follows from one.
    unreconciled: AtomicBool,
    /// Time at which the registry refused what it misses.
    refused_at: Mutex<Option<Instant>>,
    /// Wakes the task that follows the registry after a quarantine was decided here.
    reconcile_soon: Notify,
    /// True if the registry did not answer the last time this host asked it.
    unavailable: AtomicBool,
}

impl Offline {
    /// # Errors
    /// Fails if the withdrawals on this host's disk can neither be read nor renamed.
    pub fn new(registry: Arc<dyn HostRegistry>) -> anyhow::Result<Self> {
        let withdrawals = match registry.local_changes() {
            Some(local) => Withdrawals::open(local.directory(), local.host.clone())?,
            None => Withdrawals::embedded(),
        };
        Ok(Self {
            registry,
            quarantines: Mutex::default(),
            withdrawals,
            present_at: Mutex::default(),
            unreconciled: AtomicBool::new(false),
            refused_at: Mutex::default(),
            reconcile_soon: Notify::new(),
            unavailable: AtomicBool::new(false),
        })
    }

    /// Reports if the registry did not answer the last time this host asked it.
    pub fn is_unavailable(&self) -> bool {
        self.unavailable.load(Ordering::Acquire)
    }

    pub fn set_unavailable(&self, unavailable: bool) {
        self.unavailable.store(unavailable, Ordering::Release);
    }

    /// Reports if this host made changes that the registry does not have yet.
    pub fn is_ahead(&self) -> bool {
        let local = self.registry.local_changes();
        local.is_some_and(|local| !local.is_empty())
    }

    /// Returns the changes that the registry does not have yet, oldest first.
    pub fn local_changes(&self) -> Vec<LocalChange> {
        let local = self.registry.local_changes();
        local.map(LocalChanges::list).unwrap_or_default()
    }

    /// Returns the changes of this host that the registry refused for good, oldest first.
    pub fn set_aside(&self) -> Vec<SetAside> {
        let local = self.registry.local_changes();
        local.map(LocalChanges::set_aside).unwrap_or_default()
    }

    /// Reports if this change can be made on this host without the registry, and the registry
    /// did not answer a moment ago. The registry is then not asked.
    pub fn makes_offline(&self, change: &Change) -> bool {
        self.is_unavailable()
            && self.registry.local_changes().is_some()
            && Intent::from_change(change).is_some()
    }

    /// Saves a change on this host's disk, if this kind of change is allowed without the
    /// registry. `base` is the newest state that this host knows, and `cause` is the reason why the
    /// change could not be recorded in the registry.
    ///
    /// # Errors
    /// Returns `cause` if the change needs the registry. Also fails if the disk write fails.
    pub async fn save(
        &self,
        change: &Change,
        actor: &str,
        base: AuditHead,
        cause: anyhow::Error,
    ) -> anyhow::Result<()> {
        let local = self.registry.local_changes();
        let (Some(local), Some(intent)) = (local, Intent::from_change(change)) else {
            return Err(cause);
        };
        add(local, intent, actor, unix_ms(), base).await?;
        tracing::warn!(
            cause = format!("{cause:#}"),
            action = change.action(),
            subject = change.subject(),
            actor,
            "the registry does not answer; the change was made on this host only and is reconciled later"
        );
        Ok(())
    }

    /// Adds the changes that this host made without the registry to the registry's state.
    pub fn with_local_changes(&self, mut state: RegistryState) -> RegistryState {
        for local in self.local_changes() {
            // A change that no longer applies is skipped here. It is removed when the registry
            // can record that it was dropped.
            if let Ok(change) = local.intent.on(&state) {
                state.apply(&change);
                complete_quarantines(&mut state);
            }
        }
        state
    }
}

async fn add(
    local: &LocalChanges,
    intent: Intent,
    actor: &str,
    made_at_ms: UnixMs,
    base: AuditHead,
) -> anyhow::Result<()> {
    let change = LocalChange {
        id: Uuid::now_v7(),
        host: local.host.clone(),
        intent,
        actor: actor.to_owned(),
        made_at_ms,
        base_revision: base.revision,
        base_head: base.hash,
    };
    let added = local.add(change).await;
    added.context("could not save a change on this host's disk")
}
