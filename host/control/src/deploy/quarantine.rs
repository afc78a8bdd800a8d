//! Quarantine by an operator, and withdrawal by this host: both take a policy out of service on
//! this host at once, and reach the registry afterwards. The reason for this order is in
//! `deploy/mod.rs`.

use super::error::check_reason;
use super::{Deploy, DeployError, Published, Scope};
use crate::loader::require_published;
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::budget::Thresholds;
use nova_model::quarantine::Quarantine;
use nova_model::slowness::slow_by_itself;
use nova_model::withdrawal::OwnWithdrawal;
use nova_policy::loaded::LoadedPolicy;
use nova_support::clock::unix_ms;
use std::sync::Arc;
use std::time::Instant;

impl Deploy {
    /// Takes a published policy out of service, under every name with the same behaviour. When
    /// this returns, the quarantine applies on this host, even if the registry is unavailable.
    /// The registry receives it when it is available again.
    ///
    /// # Errors
    /// Fails if the policy is not published, or if the registry refuses the quarantine. It then
    /// applies nowhere.
    pub async fn quarantine(
        &self,
        policy: &PolicyRef,
        reason: &str,
        actor: &str,
    ) -> Result<(Published, Scope), DeployError> {
        check_reason(reason)?;
        // Held until the registry has taken the quarantine. If it refuses, the policies that served
        // before are still in memory.
        let before = self.serving.load_full();
        let digest = require_published(&before.state, policy)?.digest;
        self.quarantine_here(digest, policy, reason, actor).await;
        let changing = self.begin_change().await;
        let recorded = self.record_quarantines().await;
        if let Err(refused) = &recorded
            && refused.is_refused_by_registry()
        {
            self.offline.forget_quarantine(digest);
            self.refresh().await.map_err(DeployError::Unavailable)?;
        }
        drop((changing, before));
        self.save_state().await;
        let scope = match recorded {
            Ok(()) => Scope::Everywhere,
            Err(refused) if refused.is_refused_by_registry() => return Err(refused),
            Err(error) => {
                tracing::warn!(%error, %policy, "could not record a quarantine in the registry; it applies on this host only, and is recorded when the registry answers");
                Scope::ThisHost
            }
        };
        Ok((Published::from_state(&self.serving().state, policy)?, scope))
    }

    /// Takes every policy out of this host's service that has spent its error budget. This does
    /// not wait for a slow registry: the task that follows the registry reports the withdrawal
    /// there.
    pub async fn enforce_budgets(&self, thresholds: &Thresholds, now: Instant) {
        if self.spent(thresholds, now).is_empty() {
            return;
        }
        self.withdraw_spent(thresholds, now).await;
        if let Err(error) = self.offline.withdrawals.save().await {
            tracing::error!(
                error = format!("{error:#}"),
                "could not save on this host's disk which policies it took out of service; trying again every second"
            );
        }
    }

    /// Swaps the policies out that have spent their error budgets, without the lock `changing`.
    async fn withdraw_spent(&self, thresholds: &Thresholds, now: Instant) {
        let swap = self.serving.begin_swap().await;
        // Decided under the lock, because a lift may have come before it. It is not to be undone
        // by failures of the time before.
        let spent = self.spent(thresholds, now);
        for (policy, reason) in spent {
            let (name, digest) = (&policy.spec.policy, policy.effective_digest);
            tracing::error!(policy = %name, %digest, reason, "the policy has spent its error budget; this host takes it out of its service");
            self.offline.withdraw(OwnWithdrawal {
                digest,
                policy: name.clone(),
                reason,
                at_ms: unix_ms(),
                base_revision: self.revision(),
            });
        }
        self.swap_to(&swap, self.serving().state.clone());
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
            let (own, deadline) = (counts(policy), policy.deadline());
            let reason = own
                .slower_than(&active, deadline, thresholds)
                .or_else(|| slow_by_itself(&own, active.calls, deadline, thresholds))?;
            Some(((*policy).clone(), reason))
        });
        let in_use = std::iter::once(&serving.active).chain(&serving.warm);
        let failing = in_use.chain(trials.iter().copied()).filter_map(|policy| {
            let reason = counts(policy).failed_too_often(thresholds)?;
            Some((policy.clone(), reason))
        });
        failing
            .chain(too_slow)
            .filter(|(policy, _)| !serving.is_out_of_service(policy.effective_digest))
            .collect()
    }

    /// Swaps a policy out on this host, without the lock `changing`.
    async fn quarantine_here(&self, digest: Digest, policy: &PolicyRef, reason: &str, actor: &str) {
        let swap = self.serving.begin_swap().await;
        let state = self.serving().state.clone();
        if state.quarantined.contains_key(&digest) {
            return;
        }
        let quarantine = Quarantine {
            policy: policy.clone(),
            reason: reason.to_owned(),
            by: actor.to_owned(),
            at_ms: unix_ms(),
        };
        self.offline.quarantine(digest, quarantine);
        self.swap_to(&swap, state);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
