//! Taking a policy out of service: on this host at once, then in the registry, then what follows from
//! it. Every host can do the last part, so it is done also when the one that began it is gone.

use super::change::standing;
use super::{Deploy, DeployError, Published, require_published};
use crate::clock::unix_ms;
use crate::metrics::METRICS;
use crate::policy::artifact::{Digest, PolicyRef};
use crate::policy::budget::Thresholds;
use crate::policy::lifecycle::settle;
use crate::policy::loaded::LoadedPolicy;
use crate::policy::registry::{Change, Quarantine, RegistryError, RegistryState};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

/// The actor of what nobody asked for.
const HOST: &str = "host";
/// Other hosts that settle the same get in the way a few times.
const SETTLE_ATTEMPTS: u32 = 16;

impl Deploy {
    /// Takes a published policy out of service, under every name that behaves alike. Holds on this host
    /// when answered, also while the registry is away; it is told when it returns.
    ///
    /// # Errors
    /// When it is not published.
    pub async fn quarantine(
        &self,
        policy: &PolicyRef,
        reason: &str,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let digest = require_published(&self.serving().state, policy)?.digest;
        self.withdraw(digest, policy, reason, actor)
            .await
            .map_err(DeployError::Unavailable)?;
        let _changing = self.changing.lock().await;
        if let Err(error) = self.settle().await {
            tracing::warn!(%error, %policy, "quarantined on this host; the registry is told when it answers");
        }
        standing(&self.serving().state, policy)
    }

    /// Takes out of service whatever has spent its failure budget. The registry is told by whoever
    /// follows it: this does not wait for a registry that is slow.
    pub async fn enforce_budgets(&self, thresholds: &Thresholds, now: Instant) {
        for (policy, reason) in self.spent(thresholds, now) {
            let name = &policy.spec.policy;
            tracing::error!(policy = %name, digest = %policy.effective_digest, reason, "failure budget spent: out of service");
            let digest = policy.effective_digest;
            if let Err(error) = self.withdraw(digest, name, &reason, HOST).await {
                tracing::error!(policy = %name, error = format!("{error:#}"), "cannot be taken out of service yet");
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

    fn withdrawn(&self) -> MutexGuard<'_, BTreeMap<Digest, Quarantine>> {
        self.withdrawn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What the registry says, with what was decided here and all that follows.
    pub(super) fn with_withdrawn(&self, mut state: RegistryState) -> RegistryState {
        for (change, _) in self.missing_in(&state) {
            state.apply(&change);
        }
        state
    }

    /// What the registry has to be told, each with its actor.
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

    /// Brings into the registry what is missing there. Two hosts that do this at once do it once: who
    /// comes second finds another revision, looks again, and finds nothing left to do.
    pub(super) async fn settle(&self) -> Result<(), DeployError> {
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
            tracing::warn!(action, subject, %detail, actor, "settled in the registry");
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
