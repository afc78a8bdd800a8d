//! Record: writes a change to the registry and puts it in force, or makes it on this host only
//! while the registry is unavailable. The protocol is in `deploy/mod.rs`.

use super::{Deploy, DeployError, Scope};
use crate::offline::RegistryUnavailable;
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
    /// only.
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
    /// then serves the registry's state.
    pub(super) async fn reconcile(&self) -> anyhow::Result<()> {
        while let Some(intent) = self.offline.reconcile_next().await? {
            // This host made its later changes on top of the consequences of this quarantine, so
            // the registry needs those consequences first.
            if matches!(intent, Intent::Quarantine { .. }) {
                self.record_quarantines().await?;
            }
        }
        self.refresh().await
    }

    /// Writes this host's quarantines, and the changes that follow from quarantines, to the
    /// registry. If that fails, saves the quarantines on this host's disk.
    pub(super) async fn record_quarantines(&self) -> Result<(), DeployError> {
        let recorded = match self.offline.record_quarantines().await {
            Ok(()) => self.refresh().await.map_err(DeployError::Recorded),
            Err(error) => Err(error.into()),
        };
        if recorded.is_err() {
            let saved = self.offline.save_quarantines(self.audit_head()).await;
            saved.map_err(DeployError::Unavailable)?;
        }
        recorded
    }
}
