//! What a host does while the registry is away, and how it settles that when the registry returns.

use super::{Deploy, DeployError, Reach};
use crate::clock::unix_ms;
use crate::metrics::METRICS;
use crate::policy::audit::AuditPage;
use crate::policy::lifecycle::settle as follow_quarantines;
use crate::policy::local::{Intent, LocalChange, LocalChanges, Since, reconciled};
use crate::policy::registry::{Change, RegistryError, RegistryState};
use crate::stores::UnixMs;
use anyhow::Context as _;
use std::sync::atomic::Ordering;
use tokio::sync::MutexGuard;
use uuid::Uuid;

/// Entries of the audit log that are read at once.
const AUDIT_PAGE: u32 = 500;
/// Other hosts that settle theirs at the same time get in the way now and then.
const SETTLE_ATTEMPTS: u32 = 16;

impl Deploy {
    /// One change at a time, and what this host did alone comes first.
    pub(super) async fn begin_change(&self) -> MutexGuard<'_, ()> {
        let changing = self.changing.lock().await;
        if self.is_ahead()
            && !self.away.load(Ordering::Acquire)
            && let Err(error) = self.settle_local_changes().await
        {
            tracing::debug!(error = format!("{error:#}"), "local changes wait");
        }
        changing
    }

    /// Whether this host did something that the registry does not know yet.
    pub(super) fn is_ahead(&self) -> bool {
        let local = self.registry.local_changes();
        local.is_some_and(|local| !local.is_empty())
    }

    /// Whether the registry did not answer when it was last looked at.
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
    }

    /// Whether this change is made without asking a registry that did not answer just now.
    pub(super) fn makes_alone(&self, change: &Change) -> bool {
        self.away.load(Ordering::Acquire)
            && self.registry.local_changes().is_some()
            && Intent::of(change).is_some()
    }

    /// What this host did alone and the registry does not know yet, oldest first.
    pub fn local_changes(&self) -> Vec<LocalChange> {
        let local = self.registry.local_changes();
        local.map(LocalChanges::list).unwrap_or_default()
    }

    /// Makes a change on this host alone, if it is one that may be: durable on its disk, and in force when
    /// this returns. `cause` is why it cannot be recorded.
    pub(super) async fn carry_out_alone(
        &self,
        change: &Change,
        actor: &str,
        cause: anyhow::Error,
    ) -> Result<Reach, DeployError> {
        let (Some(local), Some(intent)) = (self.registry.local_changes(), Intent::of(change))
        else {
            return Err(DeployError::Unavailable(cause));
        };
        self.keep(local, intent, actor, unix_ms())
            .await
            .map_err(DeployError::Unavailable)?;
        let (action, subject) = (change.action(), change.subject());
        let cause = format!("{cause:#}");
        tracing::warn!(cause, action, subject, actor, "changed on this host alone");
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
        kept.context("keeping a change on this host's disk")
    }

    /// Quarantines that the registry could not be told; without this a restart would forget them.
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

    /// The registry's state with what this host did alone.
    pub(super) fn with_local_changes(&self, mut state: RegistryState) -> RegistryState {
        for local in self.local_changes() {
            // What does not hold any more is dropped as soon as the registry can be told.
            if let Ok(change) = local.intent.on(&state) {
                state.apply(&change);
                follow_quarantines(&mut state);
            }
        }
        state
    }

    /// Carries out in the registry what this host did alone, in its order, or drops it there.
    pub(super) async fn settle_local_changes(&self) -> anyhow::Result<()> {
        let Some(local) = self.registry.local_changes() else {
            return Ok(());
        };
        while let Some(change) = local.first() {
            self.reconcile(&change).await?;
            local.remove(change.id).await?;
            // What this host did next was done on what followed from it.
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

    /// The registry's log from where this host knew it.
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
                "a local change was dropped"
            );
            "dropped"
        }
        _ => {
            tracing::info!(
                action,
                subject,
                actor = local.actor,
                "a local change holds everywhere"
            );
            "applied"
        }
    };
    METRICS
        .registry_local_changes_settled_total
        .with_label_values(&[outcome])
        .inc();
}
