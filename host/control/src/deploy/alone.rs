//! Local changes: changes that a host makes while the registry is unavailable, and their
//! reconciliation with the registry when it is available again.

use super::{Deploy, DeployError, Reach};
use crate::local_changes::LocalChanges;
use anyhow::Context as _;
use nova_model::audit::AuditPage;
use nova_model::lifecycle::settle as follow_quarantines;
use nova_model::local_change::{Intent, LocalChange};
use nova_model::reconcile::{Since, reconciled};
use nova_model::registry::{Change, RegistryState};
use nova_model::time::UnixMs;
use nova_stores::ports::registry::RegistryError;
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;
use std::sync::atomic::Ordering;
use tokio::sync::MutexGuard;
use uuid::Uuid;

/// Number of audit log entries read per call.
const AUDIT_PAGE: u32 = 500;
/// Attempts to reconcile one change. An attempt fails if another host changes the registry at
/// the same time, for example because it reconciles its own local changes.
const SETTLE_ATTEMPTS: u32 = 16;

impl Deploy {
    /// Takes the lock that allows one change at a time. First reconciles the changes that this
    /// host made while the registry was unavailable.
    pub(super) async fn begin_change(&self) -> MutexGuard<'_, ()> {
        let changing = self.changing.lock().await;
        if self.is_ahead()
            && !self.away.load(Ordering::Acquire)
            && let Err(error) = self.settle_local_changes().await
        {
            tracing::debug!(
                error = format!("{error:#}"),
                "could not reconcile local changes with the registry; they stay on this host for now"
            );
        }
        changing
    }

    /// Reports if this host made changes that the registry does not have yet.
    pub(super) fn is_ahead(&self) -> bool {
        let local = self.registry.local_changes();
        local.is_some_and(|local| !local.is_empty())
    }

    /// Reports if the registry did not answer the last time this host asked it.
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
    }

    /// Reports if this change can be made on this host without the registry, and the registry
    /// did not answer a moment ago. The registry is then not asked.
    pub(super) fn makes_alone(&self, change: &Change) -> bool {
        self.away.load(Ordering::Acquire)
            && self.registry.local_changes().is_some()
            && Intent::from_change(change).is_some()
    }

    /// Changes that this host made while the registry was unavailable and that are not in the
    /// registry yet, oldest first.
    pub fn local_changes(&self) -> Vec<LocalChange> {
        let local = self.registry.local_changes();
        local.map(LocalChanges::list).unwrap_or_default()
    }

    /// Makes a change on this host only, if this kind of change is allowed without the registry.
    /// When this returns, the change is on this host's disk and in force here. `cause` is the
    /// reason why the change could not be recorded in the registry.
    pub(super) async fn carry_out_alone(
        &self,
        change: &Change,
        actor: &str,
        cause: anyhow::Error,
    ) -> Result<Reach, DeployError> {
        let (Some(local), Some(intent)) =
            (self.registry.local_changes(), Intent::from_change(change))
        else {
            return Err(DeployError::Unavailable(cause));
        };
        self.keep(local, intent, actor, unix_ms())
            .await
            .map_err(DeployError::Unavailable)?;
        let (action, subject) = (change.action(), change.subject());
        let cause = format!("{cause:#}");
        tracing::warn!(
            cause,
            action,
            subject,
            actor,
            "the registry does not answer; the change was made on this host only and is reconciled later"
        );
        let _exchanging = self.exchanging.lock().await;
        let mut state = self.serving().state.clone();
        state.apply(change);
        self.exchange(state).await.map_err(DeployError::Recorded)?;
        Ok(Reach::ThisHost)
    }

    async fn keep(
        &self,
        local: &LocalChanges,
        intent: Intent,
        actor: &str,
        made_at_ms: UnixMs,
    ) -> anyhow::Result<()> {
        let change = LocalChange {
            id: Uuid::now_v7(),
            host: local.host.clone(),
            intent,
            actor: actor.to_owned(),
            made_at_ms,
            base_revision: self.serving().state.revision,
        };
        let kept = local.add(change).await;
        kept.context("could not save a change on this host's disk")
    }

    /// Saves the quarantines that are not in the registry yet, because otherwise a restart would
    /// lose them.
    pub(super) async fn keep_quarantines(&self) -> anyhow::Result<()> {
        let Some(local) = self.registry.local_changes() else {
            return Ok(());
        };
        let withdrawn = self.withdrawn().clone();
        for (digest, quarantine) in withdrawn {
            let (by, at_ms) = (quarantine.by.clone(), quarantine.at_ms);
            let intent = Intent::Quarantine { digest, quarantine };
            if local.list().iter().all(|kept| kept.intent != intent) {
                self.keep(local, intent, &by, at_ms).await?;
            }
        }
        Ok(())
    }

    /// Adds the changes that this host made without the registry to the registry's state.
    pub(super) fn with_local_changes(&self, mut state: RegistryState) -> RegistryState {
        for local in self.local_changes() {
            // A change that no longer applies is skipped here. It is removed when the registry
            // can record that it was dropped.
            if let Ok(change) = local.intent.on(&state) {
                state.apply(&change);
                follow_quarantines(&mut state);
            }
        }
        state
    }

    /// Applies this host's local changes to the registry in the order in which they were made. A
    /// change that no longer applies is recorded there as dropped.
    pub(super) async fn settle_local_changes(&self) -> anyhow::Result<()> {
        let Some(local) = self.registry.local_changes() else {
            return Ok(());
        };
        while let Some(change) = local.first() {
            self.reconcile(&change).await?;
            local.remove(change.id).await?;
            // This host made its later changes on top of the consequences of this quarantine, so
            // the registry needs those consequences first.
            if matches!(change.intent, Intent::Quarantine { .. }) {
                self.settle().await?;
            }
        }
        self.refresh().await
    }

    async fn reconcile(&self, local: &LocalChange) -> Result<(), RegistryError> {
        for _ in 0..SETTLE_ATTEMPTS {
            let since = self.since(local).await?;
            if since.is_settled {
                return Ok(());
            }
            let state = self.registry.load().await?;
            if state.revision > since.revision {
                continue;
            }
            let change = reconciled(local, &state, &since);
            match self
                .registry
                .apply(&change, &local.actor, state.revision)
                .await
            {
                Err(RegistryError::Conflict(_)) => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    report(local, &change);
                    return Ok(());
                }
            }
        }
        let busy = anyhow::anyhow!("other hosts keep changing the registry");
        Err(RegistryError::Unavailable(busy))
    }

    /// Reads the registry's audit log after the revision on which this host based its change.
    async fn since(&self, local: &LocalChange) -> Result<Since, RegistryError> {
        let mut since = Since::new(local.base_revision);
        loop {
            let page = AuditPage::After(since.revision);
            let entries = self.registry.audit(page, AUDIT_PAGE).await?;
            for entry in &entries {
                since.read(local, entry);
            }
            if entries.is_empty() {
                return Ok(since);
            }
        }
    }
}

fn report(local: &LocalChange, change: &Change) {
    let (action, subject) = (change.action(), change.subject());
    let outcome = match change {
        Change::Dropped { why, .. } => {
            tracing::warn!(
                subject,
                actor = local.actor,
                why,
                "a local change no longer applies; it was recorded in the registry as dropped"
            );
            "dropped"
        }
        _ => {
            tracing::info!(
                action,
                subject,
                actor = local.actor,
                "a local change was recorded in the registry; it now applies on every host"
            );
            "applied"
        }
    };
    METRICS
        .registry_local_changes_settled_total
        .with_label_values(&[outcome])
        .inc();
}
