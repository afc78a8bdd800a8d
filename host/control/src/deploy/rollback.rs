//! Rollback of the active policy, repeated if another change comes between. `nova_model::lifecycle`
//! decides which version it returns to.

use super::attempt::Attempts;
use super::error::check_reason;
use super::{Author, Deploy, DeployError, Published, Scope};
use nova_model::artifact::PolicyRef;
use nova_model::lifecycle::{Event, rollback_targets, step};
use nova_support::metrics::METRICS;

impl Deploy {
    /// Returns to the policy that was active before, skipping those that are out of service.
    /// While the registry does not answer, the rollback is made on this host only.
    ///
    /// # Errors
    /// Returns a conflict if the active policy is not the one that the caller expected, or if no
    /// policy was active before.
    pub async fn rollback<'a>(
        &self,
        reason: &str,
        expected_active: Option<&PolicyRef>,
        author: impl Into<Author<'a>>,
    ) -> Result<(Published, Scope), DeployError> {
        check_reason(reason)?;
        let author = author.into();
        let active = self.serving().state.activations.last().cloned();
        let mut attempts = Attempts::new();
        loop {
            let made = self.roll_back(reason, expected_active, author).await;
            // If another operator changed something else in the meantime, the rollback is still
            // what this one wants, and it is made again. If the active policy is another one, a
            // second rollback would go a step too far.
            let is_same = active == self.serving().state.activations.last().cloned();
            if !attempts.again(&made) || !is_same {
                return self.finish(author, made).await;
            }
        }
    }

    async fn roll_back(
        &self,
        reason: &str,
        expected_active: Option<&PolicyRef>,
        author: Author<'_>,
    ) -> Result<(Published, Scope), DeployError> {
        let actor = author.actor;
        let target = rollback_targets(&self.serving().state).next().cloned();
        let mut early = self.load_early(target.map(|target| (target, None))).await;
        let _changing = self.begin_change_by(author).await?;
        let serving = self.serving.load_full();
        let event = Event::Rollback {
            reason: reason.to_owned(),
            expected_active: expected_active.cloned(),
        };
        let (next, changes) = step(&serving.state, &event)?;
        let Some(to) = next.activations.last() else {
            return Err(DeployError::Conflict("no policy was ever activated".into()));
        };
        // Loaded before the change is recorded, as for an activation.
        self.require_loaded(&mut early, &serving.state, to, None)?;
        let mut scope = Scope::Everywhere;
        for (place, change) in changes.into_iter().enumerate() {
            match self.carry_out(change, actor).await {
                // The rollback is recorded. What follows from a quarantine is recorded by the task
                // that follows the registry.
                Err(DeployError::Overtaken(_)) if place > 0 => break,
                carried_out => scope = carried_out?,
            }
        }
        METRICS
            .policy_swaps_total
            .with_label_values(&["rollback"])
            .inc();
        let from = serving.state.activations.last().map(ToString::to_string);
        tracing::warn!(from, %to, actor, reason, "policy rolled back");
        Ok((Published::from_state(&self.serving().state, to)?, scope))
    }
}
