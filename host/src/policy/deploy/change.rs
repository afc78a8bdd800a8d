//! Changes of what serves: activation, rollback, flags. Each is made in the registry first.

use super::{Deploy, DeployError, PolicyState, Published, require_published};
use crate::metrics::METRICS;
use crate::policy::artifact::PolicyRef;
use crate::policy::registry::Change;

impl Deploy {
    /// Makes a published policy the active one.
    ///
    /// # Errors
    /// When it is not published, cannot be loaded, or the registry does not answer.
    pub async fn activate(
        &self,
        policy: &PolicyRef,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let _changing = self.changing.lock().await;
        self.activate_locked(policy, actor).await
    }

    pub(super) async fn activate_locked(
        &self,
        policy: &PolicyRef,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let serving = self.serving.load_full();
        let digest = require_published(&serving.state, policy)?.digest;
        let done = Published {
            policy: policy.clone(),
            digest,
            state: PolicyState::Active,
            new: false,
        };
        let recorded = serving.state.activations.last() == Some(policy);
        if recorded && serving.active.spec.policy == *policy {
            return Ok(done);
        }
        // Loaded before it is recorded: what cannot run must not become the truth.
        let loaded = self.load(&serving.state, policy, None).await?;
        self.carry_out(
            Change::Activate {
                policy: policy.clone(),
            },
            actor,
        )
        .await?;
        drop(loaded);
        METRICS
            .policy_swaps_total
            .with_label_values(&["activate"])
            .inc();
        tracing::info!(%policy, %digest, actor, "policy activated");
        Ok(done)
    }

    /// Returns to what was active before.
    ///
    /// # Errors
    /// A conflict when another policy is active than the caller expected, or nothing was active before.
    pub async fn rollback(
        &self,
        reason: &str,
        expected_active: Option<&PolicyRef>,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let _changing = self.changing.lock().await;
        let serving = self.serving.load_full();
        let Some((active, former)) = serving.state.activations.split_last() else {
            return Err(DeployError::Conflict("nothing was ever activated".into()));
        };
        if let Some(expected) = expected_active
            && expected != active
        {
            return Err(DeployError::Conflict(format!(
                "{active} is active, not {expected}; nothing was changed"
            )));
        }
        let Some(to) = former.last() else {
            return Err(DeployError::Conflict(format!(
                "{active} was the first; there is nothing to go back to"
            )));
        };
        // Loaded before it is recorded, as for an activation.
        let loaded = self.load(&serving.state, to, None).await?;
        let change = Change::Rollback {
            from: active.clone(),
            to: to.clone(),
            reason: reason.to_owned(),
        };
        self.carry_out(change, actor).await?;
        drop(loaded);
        METRICS
            .policy_swaps_total
            .with_label_values(&["rollback"])
            .inc();
        tracing::warn!(from = %active, %to, actor, reason, "policy rolled back");
        Ok(Published {
            policy: to.clone(),
            digest: require_published(&serving.state, to)?.digest,
            state: PolicyState::Active,
            new: false,
        })
    }

    /// # Errors
    /// When the registry does not answer.
    pub async fn set_flag(
        &self,
        name: &str,
        enabled: bool,
        actor: &str,
    ) -> Result<(), DeployError> {
        let _changing = self.changing.lock().await;
        self.carry_out(
            Change::SetFlag {
                name: name.to_owned(),
                enabled,
            },
            actor,
        )
        .await
    }
}
