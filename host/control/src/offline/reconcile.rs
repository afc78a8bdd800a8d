//! Reconciliation of local changes with the registry.

use super::Offline;
use nova_model::audit::AuditPage;
use nova_model::local_change::{Intent, LocalChange};
use nova_model::reconcile::{Since, reconciled};
use nova_model::registry::Change;
use nova_stores::ports::registry::RegistryError;
use nova_support::metrics::METRICS;

/// Number of audit log entries read per call.
const AUDIT_PAGE: u32 = 500;
/// Attempts to reconcile one change. An attempt fails if another host changes the registry at
/// the same time, for example because it reconciles its own local changes.
const RECONCILE_ATTEMPTS: u32 = 16;

impl Offline {
    /// Applies the oldest local change to the registry and removes it from this host's disk. A
    /// change that no longer applies is recorded there as dropped. Returns `None` if no local
    /// change is left.
    ///
    /// # Errors
    /// Fails if the registry does not answer, or if the disk write fails.
    pub async fn reconcile_next(&self) -> anyhow::Result<Option<Intent>> {
        let Some(local) = self.registry.local_changes() else {
            return Ok(None);
        };
        let Some(change) = local.first() else {
            return Ok(None);
        };
        self.reconcile(&change).await?;
        local.remove(change.id).await?;
        Ok(Some(change.intent))
    }

    async fn reconcile(&self, local: &LocalChange) -> Result<(), RegistryError> {
        for _ in 0..RECONCILE_ATTEMPTS {
            let since = self.since(local).await?;
            if since.is_reconciled {
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
