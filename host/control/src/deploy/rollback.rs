//! Rollback of the active policy, repeated if another change comes between. `nova_model::lifecycle`
//! decides which version it returns to.

use super::{Author, Deploy, DeployError, Published, Scope};
use nova_model::artifact::PolicyRef;
use nova_model::lifecycle::{Event, step};
use nova_support::metrics::METRICS;

/// Attempts to make one rollback while others change unrelated parts of the registry.
const ROLLBACK_ATTEMPTS: u32 = 4;

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
        let author = author.into();
        let actor = author.actor;
        let _changing = self.begin_change_by(author).await?;
        for _ in 1..ROLLBACK_ATTEMPTS {
            let active = self.serving().state.activations.last().cloned();
            match self.roll_back(reason, expected_active, actor).await {
                // Another operator changed something else in the meantime. The active policy is
                // the same, so the rollback is still what the operator wants, and it is tried
                // again.
                Err(DeployError::Conflict(_))
                    if author.if_revision.is_none()
                        && active == self.serving().state.activations.last().cloned() => {}
                other => return other.map_err(|error| self.in_terms_of(author, error)),
            }
        }
        self.roll_back(reason, expected_active, actor).await
    }

    async fn roll_back(
        &self,
        reason: &str,
        expected_active: Option<&PolicyRef>,
        actor: &str,
    ) -> Result<(Published, Scope), DeployError> {
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
        let loaded = self.loader.load(&serving.state, to, None).await?;
        let mut scope = Scope::Everywhere;
        for change in changes {
            scope = self.carry_out(change, actor).await?;
        }
        drop(loaded);
        METRICS
            .policy_swaps_total
            .with_label_values(&["rollback"])
            .inc();
        let from = serving.state.activations.last().map(ToString::to_string);
        tracing::warn!(from, %to, actor, reason, "policy rolled back");
        Ok((Published::from_state(&self.serving().state, to)?, scope))
    }
}
