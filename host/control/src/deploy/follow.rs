//! Synchronisation with the registry: prepares an empty registry so that a host can serve by it,
//! and follows the changes that other processes make.

use super::{Deploy, DeployError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Interval at which a host checks if another process changed the registry.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Attempts to prepare the registry. Hosts that start at the same time on an empty registry
/// conflict a few times.
const PREPARE_ATTEMPTS: u32 = 16;

impl Deploy {
    /// Prepares the registry so that a host can serve by it. If another host does this at the
    /// same time, the two share the work.
    pub(super) async fn prepare(&self) -> Result<(), DeployError> {
        for _ in 0..PREPARE_ATTEMPTS {
            match self.try_to_prepare().await {
                Err(DeployError::Conflict(_)) => {}
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

    /// Follows changes that other processes make, until the host ends.
    pub async fn follow_registry(self: Arc<Self>) {
        let mut failing = self.offline.is_unavailable();
        loop {
            tokio::select! {
                () = self.registry.changed() => {}
                () = self.offline.reconcile_soon() => {}
                () = self.loader.background().compiled() => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
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
            if let Err(error) = self.offline.withdrawals.save().await {
                tracing::error!(
                    error = format!("{error:#}"),
                    "could not save on this host's disk which policies it took out of service; trying again every second"
                );
            }
            let _changing = self.changing.lock().await;
            if failing && let Err(error) = self.offline.save_quarantines(self.audit_head()).await {
                tracing::error!(
                    error = format!("{error:#}"),
                    "could not save a quarantine on this host's disk; a restart would lose it"
                );
            }
        }
    }

    /// Checks the registry once and makes the changes that this requires.
    pub(super) async fn look(&self) -> anyhow::Result<()> {
        // The hash is compared as well as the revision, because a registry that was restored from
        // a backup reaches a revision again with another state.
        let head = self.registry.head().await?;
        self.offline.set_unavailable(false);
        self.offline.note_presence().await;
        if !self.is_prepared.load(Ordering::Acquire) {
            return Ok(self.prepare().await?);
        }
        let retry = self.is_retry_due();
        let is_behind = self.offline.is_ahead() || self.offline.is_unreconciled() || retry;
        if head == self.audit_head() && !is_behind {
            return Ok(());
        }
        // A policy can take long to compile, so it is loaded before the lock is taken that other
        // changes wait for.
        let _active = if head == self.audit_head() {
            None
        } else {
            let state = self.registry.load().await?;
            let state = self.offline.with_local_changes(state);
            let state = self.offline.with_quarantines(state);
            self.load_active(&state).await
        };
        let _changing = self.changing.lock().await;
        if self.offline.is_ahead() {
            self.reconcile().await?;
        }
        // The new revision may come from this host's own change. That change may have been
        // loaded since the check.
        if head != self.audit_head() || retry {
            let refreshed = self.refresh().await;
            self.loader.background().release();
            refreshed?;
        }
        if self.offline.is_unreconciled() {
            self.record_quarantines().await?;
        }
        Ok(())
    }
}
