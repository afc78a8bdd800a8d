//! Reconciliation of local changes with the registry.

use super::{LocalChanges, Offline, SetAside};
use nova_model::audit::AuditPage;
use nova_model::local_change::{Intent, LocalChange};
use nova_model::reconcile::{Since, reconciled};
use nova_model::registry::Change;
use nova_stores::ports::registry::RegistryError;
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;

/// Number of audit log entries read per call.
const AUDIT_PAGE: u32 = 500;
/// Attempts to reconcile one change. An attempt fails if another host changes the registry at
/// the same time, for example because it reconciles its own local changes.
const RECONCILE_ATTEMPTS: u32 = 16;

/// What became of a local change.
#[derive(Debug)]
pub enum Settled {
    /// The registry has it, or an entry that it was dropped.
    Reconciled(Intent),
    /// The registry refused it for good.
    SetAside,
}

impl Offline {
    /// Applies the oldest local change to the registry and removes it from this host's disk. A
    /// change that no longer applies is recorded there as dropped. A change that the registry
    /// refuses for good is set aside. Returns `None` if no local change is left.
    ///
    /// # Errors
    /// Fails if the registry does not answer, or if the disk write fails.
    pub async fn reconcile_next(&self) -> anyhow::Result<Option<Settled>> {
        let Some(local) = self.registry.local_changes() else {
            return Ok(None);
        };
        let Some(change) = local.first() else {
            return Ok(None);
        };
        match self.reconcile(&change).await? {
            Ok(()) => {
                local.remove(change.id).await?;
                Ok(Some(Settled::Reconciled(change.intent)))
            }
            Err(refusal) => {
                self.set_aside_change(local, change, &refusal).await?;
                Ok(Some(Settled::SetAside))
            }
        }
    }

    /// Returns the registry's refusal of this change as a value, because nothing else follows from
    /// it than that the change is set aside.
    async fn reconcile(
        &self,
        local: &LocalChange,
    ) -> Result<Result<(), RegistryError>, RegistryError> {
        for _ in 0..RECONCILE_ATTEMPTS {
            let since = self.since(local).await?;
            if since.is_reconciled {
                return Ok(Ok(()));
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
                Err(error) if error.is_permanent() => return Ok(Err(error)),
                Err(error) => return Err(error),
                Ok(_) => {
                    report(local, &change);
                    return Ok(Ok(()));
                }
            }
        }
        let busy = anyhow::anyhow!("other hosts keep changing the registry");
        Err(RegistryError::Unavailable(busy))
    }

    /// Moves a change out of the way that the registry refuses for good.
    async fn set_aside_change(
        &self,
        local: &LocalChanges,
        change: LocalChange,
        refusal: &RegistryError,
    ) -> anyhow::Result<()> {
        let reason = refusal.to_string();
        let is_audited = self.record_dropped(&change, &reason).await;
        let (id, subject, actor) = (change.id, change.intent.subject(), change.actor.clone());
        let aside = SetAside {
            change,
            reason,
            at_ms: unix_ms(),
            is_audited,
        };
        local.move_aside(aside).await?;
        tracing::error!(
            %id,
            subject,
            actor,
            reason = %refusal,
            is_audited,
            "the registry refuses a local change for good; it was set aside and is no longer in force on this host"
        );
        METRICS
            .registry_local_changes_settled_total
            .with_label_values(&["set_aside"])
            .inc();
        Ok(())
    }

    /// Adds an entry about a refused change to the audit log, if the registry takes one.
    async fn record_dropped(&self, local: &LocalChange, reason: &str) -> bool {
        let record = async {
            let state = self.registry.load().await?;
            let change = Change::Dropped {
                local: local.clone(),
                why: reason.to_owned(),
            };
            let applied = self
                .registry
                .apply(&change, &local.actor, state.revision)
                .await;
            applied.map(drop)
        };
        match record.await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, id = %local.id, "the registry's audit log gets no entry about a refused local change");
                false
            }
        }
    }

    /// Reads the registry's audit log after the revision on which this host based its change.
    async fn since(&self, local: &LocalChange) -> Result<Since, RegistryError> {
        let mut since = Since::new(local);
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
