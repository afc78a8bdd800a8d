//! Quarantine: takes a policy out of service on this host at once, then records it in the
//! registry, then makes the changes that follow from it. Every host can do the last part, so it
//! is done even if the host that began it is gone.

use super::change::standing;
use super::{Deploy, DeployError, Published, Reach, require_published};
use crate::last_good::Away;
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::budget::Thresholds;
use nova_model::lifecycle::settle;
use nova_model::quarantine::Quarantine;
use nova_model::registry::{Change, HOST, RegistryState};
use nova_policy::loaded::LoadedPolicy;
use nova_stores::ports::registry::RegistryError;
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

/// Attempts to write pending quarantines to the registry. Other hosts that write the same
/// quarantines conflict a few times.
const SETTLE_ATTEMPTS: u32 = 16;

impl Deploy {
    /// Takes a published policy out of service, under every name with the same behaviour. When
    /// this returns, the quarantine applies on this host, even if the registry is unavailable.
    /// The registry receives it when it is available again.
    ///
    /// # Errors
    /// Fails if the policy is not published.
    pub async fn quarantine(
        &self,
        policy: &PolicyRef,
        reason: &str,
        actor: &str,
    ) -> Result<(Published, Reach), DeployError> {
        let digest = require_published(&self.serving().state, policy)?.digest;
        self.withdraw(digest, policy, reason, actor)
            .await
            .map_err(DeployError::Unavailable)?;
        let _changing = self.begin_change().await;
        let reach = match self.settle().await {
            Ok(()) => Reach::Everywhere,
            Err(error) => {
                tracing::warn!(%error, %policy, "could not record a quarantine in the registry; it applies on this host only, and is recorded when the registry answers");
                Reach::ThisHost
            }
        };
        Ok((standing(&self.serving().state, policy)?, reach))
    }

    /// Takes every policy out of service that has spent its error budget. This does not wait for
    /// a slow registry: the task that follows the registry writes the quarantine there.
    pub async fn enforce_budgets(&self, thresholds: &Thresholds, now: Instant) {
        for (policy, reason) in self.spent(thresholds, now) {
            let name = &policy.spec.policy;
            tracing::error!(policy = %name, digest = %policy.effective_digest, reason, "the policy has spent its error budget; taking it out of service");
            let digest = policy.effective_digest;
            if let Err(error) = self.withdraw(digest, name, &reason, HOST).await {
                tracing::error!(policy = %name, error = format!("{error:#}"), "could not take a policy out of service; trying again");
            }
        }
    }

    fn spent(&self, thresholds: &Thresholds, now: Instant) -> Vec<(Arc<LoadedPolicy>, String)> {
        let serving = self.serving();
        let counts = |policy: &LoadedPolicy| policy.outcomes.counts(now, thresholds.window_s);
        let active = counts(&serving.active);
        let trials = serving.experiments.iter().flat_map(|e| e.policies());
        let trials: Vec<_> = trials
            .chain(serving.canary.iter().map(|canary| &canary.policy))
            .filter(|policy| policy.effective_digest != serving.active.effective_digest)
            .collect();
        let too_slow = trials.iter().filter_map(|policy| {
            let reason = counts(policy).slower_than(&active, policy.deadline(), thresholds)?;
            Some(((*policy).clone(), reason))
        });
        let in_use = std::iter::once(&serving.active).chain(&serving.warm);
        let failing = in_use.chain(trials.iter().copied()).filter_map(|policy| {
            let reason = counts(policy).failed_too_often(thresholds)?;
            Some((policy.clone(), reason))
        });
        failing
            .chain(too_slow)
            .filter(|(policy, _)| {
                let quarantined = &serving.state.quarantined;
                !quarantined.contains_key(&policy.effective_digest)
            })
            .collect()
    }

    async fn withdraw(
        &self,
        digest: Digest,
        policy: &PolicyRef,
        reason: &str,
        actor: &str,
    ) -> anyhow::Result<()> {
        let _exchanging = self.exchanging.lock().await;
        let state = self.serving().state.clone();
        if state.quarantined.contains_key(&digest) {
            return Ok(());
        }
        let quarantine = Quarantine {
            policy: policy.clone(),
            reason: reason.to_owned(),
            by: actor.to_owned(),
            at_ms: unix_ms(),
        };
        self.withdrawn().insert(digest, quarantine);
        self.unsettled.store(true, Ordering::Release);
        self.settle_soon.notify_one();
        self.exchange(state).await
    }

    pub(super) fn withdrawn(&self) -> MutexGuard<'_, BTreeMap<Digest, Quarantine>> {
        self.withdrawn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the quarantines decided on this host, and all changes that follow from them, to the
    /// registry's state.
    pub(super) fn with_withdrawn(&self, mut state: RegistryState) -> RegistryState {
        for (change, _) in self.missing_in(&state) {
            state.apply(&change);
        }
        state
    }

    /// Changes that are missing in the registry, each with its actor.
    fn missing_in(&self, recorded: &RegistryState) -> Vec<(Change, String)> {
        let mut state = recorded.clone();
        let mut missing = Vec::new();
        for (digest, quarantine) in self.withdrawn().iter() {
            if !state.quarantined.contains_key(digest) {
                let change = Change::Quarantine {
                    digest: *digest,
                    quarantine: quarantine.clone(),
                };
                state.apply(&change);
                missing.push((change, quarantine.by.clone()));
            }
        }
        let following = settle(&mut state).into_iter();
        missing.extend(following.map(|change| (change, HOST.to_owned())));
        missing
    }

    pub(super) fn is_unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire)
    }

    pub(super) fn note_unsettled(&self, recorded: &RegistryState) {
        self.withdrawn()
            .retain(|digest, _| !recorded.quarantined.contains_key(digest));
        let unsettled = !self.missing_in(recorded).is_empty();
        self.unsettled.store(unsettled, Ordering::Release);
    }

    /// Writes the missing changes to the registry. If two hosts do this at the same time, it is
    /// done once: the second host gets a conflict, loads the new revision and finds nothing left
    /// to do.
    pub(super) async fn settle(&self) -> Result<(), DeployError> {
        let settled = self.settle_unless_away().await;
        if settled.is_err() {
            self.keep_quarantines()
                .await
                .map_err(DeployError::Unavailable)?;
        }
        settled
    }

    async fn settle_unless_away(&self) -> Result<(), DeployError> {
        if self.away.load(Ordering::Acquire) {
            return Err(DeployError::Unavailable(Away.into()));
        }
        for _ in 0..SETTLE_ATTEMPTS {
            match self.try_to_settle().await {
                Err(RegistryError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
                Ok(()) => return self.refresh().await.map_err(DeployError::Recorded),
            }
        }
        let busy = anyhow::anyhow!("other hosts keep changing the registry");
        Err(DeployError::Unavailable(busy))
    }

    async fn try_to_settle(&self) -> Result<(), RegistryError> {
        let state = self.registry.load().await?;
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
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
