//! Quarantines and withdrawals decided on this host, until the registry has them and all changes
//! that follow from them.

use super::{Offline, RegistryUnavailable, add};
use nova_model::artifact::Digest;
use nova_model::audit_head::AuditHead;
use nova_model::lifecycle::complete_quarantines;
use nova_model::local_change::Intent;
use nova_model::quarantine::Quarantine;
use nova_model::registry::{Change, HOST, RegistryState};
use nova_model::withdrawal::OwnWithdrawal;
use nova_stores::ports::registry::RegistryError;
use nova_support::metrics::METRICS;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Interval at which a host notes its presence. It is a fraction of the time for which the
/// registry counts a host as present.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(10);
/// Attempts to write pending quarantines to the registry. Other hosts that write the same
/// quarantines conflict a few times.
const QUARANTINE_ATTEMPTS: u32 = 16;

/// Pause after the registry refused what this host decided. An operator may mend a missing grant
/// or key meanwhile.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

impl Offline {
    /// Adds a quarantine that this host decided, and wakes the task that writes it to the
    /// registry.
    pub fn quarantine(&self, digest: Digest, quarantine: Quarantine) {
        self.quarantines().insert(digest, quarantine);
        *self.refused_at() = None;
        self.unreconciled.store(true, Ordering::Release);
        self.reconcile_soon.notify_one();
    }

    /// Forgets a quarantine that this host decided and the registry refused.
    pub fn forget_quarantine(&self, digest: Digest) {
        self.quarantines().remove(&digest);
    }

    /// Adds a withdrawal of this host, and wakes the task that reports it to the registry.
    pub fn withdraw(&self, withdrawal: OwnWithdrawal) {
        self.withdrawals.add(withdrawal);
        *self.refused_at() = None;
        self.unreconciled.store(true, Ordering::Release);
        self.reconcile_soon.notify_one();
    }

    /// Notes this host's presence in the registry, if it did not do so lately, and learns if it is
    /// the only host. While the registry does not answer, that is unknown.
    pub async fn note_presence(&self) {
        if self.is_present() {
            return;
        }
        self.count_hosts().await;
    }

    fn is_present(&self) -> bool {
        let at = self
            .present_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() < PRESENCE_INTERVAL)
    }

    async fn count_hosts(&self) {
        // A registry without local changes is this host's own, or a command's, which is no host.
        if self.registry.local_changes().is_none() {
            return;
        }
        let hosts = self.registry.present_hosts(self.withdrawals.host()).await;
        let noted = hosts.is_ok().then(Instant::now);
        *self
            .present_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = noted;
        match hosts {
            Ok(hosts) => self.withdrawals.set_only_host(hosts <= 1),
            Err(error) => {
                self.withdrawals.set_only_host(false);
                tracing::warn!(%error, "could not note this host's presence in the registry; it does not know if it is the only host, and trying again");
            }
        }
    }

    /// Returns when a quarantine or a withdrawal was decided here.
    pub async fn reconcile_soon(&self) {
        self.reconcile_soon.notified().await;
    }

    /// Reports if the registry misses a quarantine, or a change that follows from one, and if it
    /// has not refused it lately.
    pub fn is_unreconciled(&self) -> bool {
        let refused_at = *self.refused_at();
        let is_refused = refused_at.is_some_and(|at| at.elapsed() < REFUSED_PAUSE);
        self.unreconciled.load(Ordering::Acquire) && !is_refused
    }

    fn refused_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.refused_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the quarantines decided on this host, and all changes that follow from them, to the
    /// registry's state.
    pub fn with_quarantines(&self, mut state: RegistryState) -> RegistryState {
        for (change, _) in self.missing_in(&state) {
            state.apply(&change);
        }
        state
    }

    /// Forgets the quarantines that `recorded` has and the withdrawals that it settles, and notes
    /// if it misses anything.
    pub fn note_recorded(&self, recorded: &RegistryState) {
        self.withdrawals.settle(recorded);
        self.quarantines()
            .retain(|digest, _| !recorded.quarantined.contains_key(digest));
        let unreconciled = !self.missing_in(recorded).is_empty();
        self.unreconciled.store(unreconciled, Ordering::Release);
    }

    /// Changes that are missing in the registry, each with its actor.
    fn missing_in(&self, recorded: &RegistryState) -> Vec<(Change, String)> {
        let mut state = recorded.clone();
        let mut missing = Vec::new();
        for (digest, quarantine) in self.quarantines().iter() {
            if !state.quarantined.contains_key(digest) {
                let change = Change::Quarantine {
                    digest: *digest,
                    quarantine: quarantine.clone(),
                };
                state.apply(&change);
                missing.push((change, quarantine.by.clone()));
            }
        }
        for change in self.withdrawals.missing_in(&state) {
            state.apply(&change);
            missing.push((change, HOST.to_owned()));
        }
        let following = complete_quarantines(&mut state).into_iter();
        missing.extend(following.map(|change| (change, HOST.to_owned())));
        missing
    }

    /// Writes the missing changes to the registry. If two hosts do this at the same time, it is
    /// done once: the second host gets a conflict, loads the new revision and finds nothing left
    /// to do.
    ///
    /// # Errors
    /// Fails if the registry does not answer or refuses the changes. Fails at once if it did not
    /// answer a moment ago.
    pub async fn record_quarantines(&self) -> Result<(), RegistryError> {
        if self.is_unavailable() {
            return Err(RegistryError::Unavailable(RegistryUnavailable.into()));
        }
        for _ in 0..QUARANTINE_ATTEMPTS {
            match self.try_to_record_quarantines().await {
                Err(RegistryError::Conflict(_)) => {}
                other => {
                    let is_refused = other.as_ref().is_err_and(RegistryError::is_permanent);
                    *self.refused_at() = is_refused.then(Instant::now);
                    return other;
                }
            }
        }
        let busy = anyhow::anyhow!("other hosts keep changing the registry");
        Err(RegistryError::Unavailable(busy))
    }

    async fn try_to_record_quarantines(&self) -> Result<(), RegistryError> {
        let state = self.registry.load().await?;
        // Whether a withdrawal needs a second host depends on the hosts that are present now.
        if !self.withdrawals.missing_in(&state).is_empty() {
            self.count_hosts().await;
        }
        let mut revision = state.revision;
        for (change, actor) in self.missing_in(&state) {
            revision = self.registry.apply(&change, &actor, revision).await?;
            let (action, subject, detail) = (change.action(), change.subject(), change.detail());
            tracing::warn!(action, subject, %detail, actor, "a pending change was recorded in the registry");
            if matches!(change, Change::Rollback { .. } | Change::Activate { .. }) {
                METRICS
                    .policy_swaps_total
                    .with_label_values(&["automatic_rollback"])
                    .inc();
            }
        }
        Ok(())
    }

    /// Saves the quarantines that are not in the registry yet, because otherwise a restart would
    /// lose them. `base` is as for [`Offline::save`].
    pub async fn save_quarantines(&self, base: AuditHead) -> anyhow::Result<()> {
        let Some(local) = self.registry.local_changes() else {
            return Ok(());
        };
        let quarantines = self.quarantines().clone();
        for (digest, quarantine) in quarantines {
            let (by, at_ms) = (quarantine.by.clone(), quarantine.at_ms);
            let intent = Intent::Quarantine { digest, quarantine };
            if local.list().iter().all(|saved| saved.intent != intent) {
                add(local, intent, &by, at_ms, base).await?;
            }
        }
        Ok(())
    }

    fn quarantines(&self) -> MutexGuard<'_, BTreeMap<Digest, Quarantine>> {
        self.quarantines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
