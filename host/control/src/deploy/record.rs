//! Record: writes a change to the registry and puts it in force, or makes it on this host only
//! while the registry is unavailable. The protocol is in `deploy/mod.rs`.

use super::{Deploy, DeployError, Scope};
use crate::offline::{RegistryUnavailable, Settled};
use nova_model::local_change::Intent;
use nova_model::registry::Change;
use nova_stores::ports::registry::RegistryError;
use tokio::sync::MutexGuard;

impl Deploy {
    /// Takes the lock `changing`. First reconciles the changes that this host made while the
    /// registry was unavailable.
    pub(super) async fn begin_change(&self) -> MutexGuard<'_, ()> {
        let changing = self.changing.lock().await;
        if self.offline.is_ahead()
            && !self.offline.is_unavailable()
            && let Err(error) = self.reconcile().await
        {
            tracing::debug!(
                error = format!("{error:#}"),
                "could not reconcile local changes with the registry; they stay on this host for now"
            );
        }
        changing
    }

    /// Records a change and puts it in force. When this returns, the change applies on this
    /// host. While the registry does not answer, some kinds of changes are made on this host
    /// only. A change that the registry refused is made nowhere.
    pub(super) async fn carry_out(
        &self,
        change: Change,
        actor: &str,
    ) -> Result<Scope, DeployError> {
        let recorded = if self.offline.makes_offline(&change) {
            Err(DeployError::Unavailable(RegistryUnavailable.into()))
        } else {
            self.record(&change, actor).await
        };
        match recorded {
            Err(DeployError::Unavailable(cause)) => {
                self.carry_out_offline(&change, actor, cause).await
            }
            recorded => recorded.map(|()| Scope::Everywhere),
        }
    }

    async fn record(&self, change: &Change, actor: &str) -> Result<(), DeployError> {
        if self.offline.is_ahead() {
            let waiting = anyhow::Error::from(RegistryUnavailable)
                .context("local changes must be written to the registry first");
            return Err(DeployError::Unavailable(waiting));
        }
        if let Err(error) = self.registry.apply(change, actor, self.revision()).await {
            if matches!(error, RegistryError::Conflict(_)) {
                self.refresh().await.map_err(DeployError::Unavailable)?;
            }
            return Err(error.into());
        }
        self.refresh().await.map_err(DeployError::Recorded)
    }

    /// Makes a change on this host only, if this kind of change is allowed without the registry.
    /// When this returns, the change is on this host's disk and in force here. `cause` is the
    /// reason why the change could not be recorded in the registry.
    async fn carry_out_offline(
        &self,
        change: &Change,
        actor: &str,
        cause: anyhow::Error,
    ) -> Result<Scope, DeployError> {
        let saved = self.offline.save(change, actor, self.audit_head(), cause);
        saved.await.map_err(DeployError::Unavailable)?;
        let swap = self.serving.begin_swap().await;
        let mut state = self.serving().state.clone();
        state.apply(change);
        self.swap_to(&swap, state);
        Ok(Scope::ThisHost)
    }

    /// Applies this host's local changes to the registry in the order in which they were made,
    /// then serves the registry's state. A change that the registry refuses is set aside.
    pub(super) async fn reconcile(&self) -> anyhow::Result<()> {
        let settled = self.settle_local_changes().await;
        // Also after a failure: a registry that takes no change may still have those of other
        // hosts.
        self.refresh().await?;
        settled
    }

    async fn settle_local_changes(&self) -> anyhow::Result<()> {
        while let Some(settled) = self.offline.reconcile_next().await? {
            // This host made its later changes on top of the consequences of this quarantine, so
            // the registry needs those consequences first.
            if let Settled::Reconciled(Intent::Quarantine { .. }) = settled {
                self.record_quarantines().await?;
            }
        }
        Ok(())
    }

    /// Writes this host's quarantines, and the changes that follow from quarantines, to the
    /// registry. If the registry does not answer, saves the quarantines on this host's disk.
    pub(super) async fn record_quarantines(&self) -> Result<(), DeployError> {
        let recorded = match self.offline.record_quarantines().await {
            Ok(()) => self.refresh().await.map_err(DeployError::Recorded),
            Err(error) => Err(error.into()),
        };
        if let Err(DeployError::Unavailable(_) | DeployError::Recorded(_)) = recorded {
            let saved = self.offline.save_quarantines(self.audit_head()).await;
            saved.map_err(DeployError::Unavailable)?;
        }
        recorded
    }
}
