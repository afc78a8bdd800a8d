//! Synchronisation with the registry: prepares an empty registry so that a host can serve by it,
//! and follows the changes that other processes make.

use super::{Deploy, DeployError};
use nova_model::audit_head::AuditHead;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// Interval at which a host checks if another process changed the registry.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before modules are saved again that could not be saved.
const SAVE_AGAIN: Duration = Duration::from_secs(60);
/// Attempts to prepare the registry. Hosts that start at the same time on an empty registry
/// conflict a few times.
const PREPARE_ATTEMPTS: u32 = 16;

impl Deploy {
    /// Prepares the registry so that a host can serve by it. If another host does this at the
    /// same time, the two share the work.
    pub(super) async fn prepare(&self) -> Result<(), DeployError> {
        for _ in 0..PREPARE_ATTEMPTS {
            match self.try_to_prepare().await {
                Err(DeployError::Conflict(_) | DeployError::Overtaken(_)) => {}
                other => return other,
            }
        }
        let busy = anyhow::anyhow!("other hosts keep changing the registry");
        Err(DeployError::Unavailable(busy))
    }

    async fn try_to_prepare(&self) -> Result<(), DeployError> {
        {
            let _changing = self.begin_change().await;
            self.refresh().await.map_err(DeployError::Unavailable)?;
        }
        self.publish_bundled().await?;
        if self.serving().state.activations.is_empty() {
            self.activate(&nova_model::artifact::baseline(), "host")
                .await?;
        }
        self.is_prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Follows changes that other processes make, until the host ends. Nothing in the loop fetches
    /// or compiles a module, so that it looks at every notification at once.
    pub async fn follow_registry(self: Arc<Self>) {
        let _saving = [
            AbortOnDropHandle::new(tokio::spawn(self.clone().save_states())),
            AbortOnDropHandle::new(tokio::spawn(self.clone().save_modules())),
        ];
        let mut preparing: Option<AbortOnDropHandle<()>> = None;
        let mut failing = self.offline.is_unavailable();
        loop {
            tokio::select! {
                () = self.registry.changed() => {}
                () = self.offline.reconcile_soon() => {}
                () = self.loader.background().loaded() => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
            self.serve_loaded().await;
            let looked = self.look().await;
            if let Err(error) = &looked
                && !failing
            {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the registry does not answer; serving the policies that were loaded last"
                );
            }
            if failing && looked.is_ok() {
                tracing::info!("the registry answers again");
            }
            failing = looked.is_err();
            self.offline.set_unavailable(failing);
            let is_prepared = self.is_prepared.load(Ordering::Acquire);
            if !failing && !is_prepared && preparing.as_ref().is_none_or(|task| task.is_finished())
            {
                let task = tokio::spawn(self.clone().prepare_late());
                preparing = Some(AbortOnDropHandle::new(task));
            }
            if let Err(error) = self.offline.withdrawals.save().await {
                tracing::error!(
                    error = format!("{error:#}"),
                    "could not save on this host's disk which policies it took out of service; trying again every second"
                );
            }
            if failing {
                let _changing = self.changing.lock().await;
                if let Err(error) = self.offline.save_quarantines(self.audit_head()).await {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "could not save a quarantine on this host's disk; a restart would lose it"
                    );
                }
            }
        }
    }

    /// Checks the registry once and makes the changes that this requires.
    pub(super) async fn look(&self) -> anyhow::Result<()> {
        // The hash is compared as well as the revision, because a registry that was restored from
        // a backup reaches a revision again with another state.
        let head = self.registry.head().await?;
        self.offline.set_unavailable(false);
        let is_behind = self.offline.is_ahead() || self.offline.is_unreconciled();
        if head != self.audit_head() || is_behind {
            self.catch_up(head).await?;
        }
        self.offline.note_presence().await;
        Ok(())
    }

    /// Looks at the registry, and waits until everything that it names serves.
    #[cfg(test)]
    pub(super) async fn look_and_load(&self) -> anyhow::Result<()> {
        self.look().await?;
        while self.loader.background().is_under_way() {
            self.loader.background().loaded().await;
            self.serve_loaded().await;
        }
        self.serve_loaded().await;
        Ok(())
    }

    async fn catch_up(&self, head: AuditHead) -> anyhow::Result<()> {
        let _changing = self.changing.lock().await;
        if self.offline.is_ahead() {
            self.reconcile().await?;
        }
        // The new revision may come from this host's own change. That change may have been
        // loaded since the check.
        if head != self.audit_head() {
            self.refresh().await?;
        }
        if self.offline.is_unreconciled() {
            match self.record_quarantines().await {
                Err(refused) if refused.is_refused_by_registry() => tracing::error!(
                    error = %refused,
                    "the registry refuses what this host decided about a failing policy; it applies on this host only, trying again in a minute"
                ),
                recorded => recorded?,
            }
        }
        Ok(())
    }

    /// Prepares a registry that did not answer when this host started. This compiles the bundled
    /// policies, so the task that follows the registry does not wait for it.
    async fn prepare_late(self: Arc<Self>) {
        if let Err(error) = self.prepare().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "could not prepare the registry; trying again every second"
            );
        }
    }

    /// Saves each state of the registry on this host's disk.
    async fn save_states(self: Arc<Self>) {
        let mut heads = self.audit_heads.subscribe();
        loop {
            heads.borrow_and_update();
            self.save_state().await;
            if heads.changed().await.is_err() {
                return;
            }
        }
    }

    /// Saves the modules that each state of the registry needs. This is a task of its own, because
    /// a module that cannot be read must not delay a state.
    async fn save_modules(self: Arc<Self>) {
        let mut heads = self.audit_heads.subscribe();
        loop {
            heads.borrow_and_update();
            let is_whole = self.registry.save_modules().await;
            tokio::select! {
                changed = heads.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(SAVE_AGAIN), if !is_whole => {}
            }
        }
    }
}
