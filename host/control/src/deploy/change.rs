//! Lifecycle steps of policies, and flags.

use super::{Deploy, DeployError, Published};
use crate::loader::require_published;
use nova_model::artifact::PolicyRef;
use nova_model::lifecycle::{Event, step};
use nova_model::registry::Change;
use nova_policy::loaded::LoadedPolicy;
use nova_support::metrics::METRICS;
use std::sync::Arc;

impl Deploy {
    /// Makes a published policy the active one.
    ///
    /// # Errors
    /// Fails if the policy is not published, is out of service or cannot be loaded, or if the
    /// registry does not answer.
    pub async fn activate(
        &self,
        policy: &PolicyRef,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let _loaded = self.load_early(policy).await;
        let _changing = self.begin_change().await;
        self.activate_locked(policy, actor).await
    }

    /// Loads the policy before the lock `changing` is taken, so that other changes do not wait
    /// for it. Ignores errors, because the change itself reports them.
    async fn load_early(&self, policy: &PolicyRef) -> Option<Arc<LoadedPolicy>> {
        let state = self.serving().state.clone();
        self.loader.load(&state, policy, None).await.ok()
    }

    /// Does the work of [`Deploy::activate`]. The caller holds the lock `changing`.
    pub(super) async fn activate_locked(
        &self,
        policy: &PolicyRef,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let serving = self.serving.load_full();
        let (_, changes) = step(&serving.state, &Event::Activate(policy.clone()))?;
        if changes.is_empty() && serving.active.spec.policy == *policy {
            return Published::from_state(&serving.state, policy);
        }
        self.refuse_downgrade(&serving.state, policy)?;
        // Loaded before the change is recorded; see the protocol in `deploy/mod.rs`.
        let loaded = self.loader.load(&serving.state, policy, None).await?;
        let change = Change::Activate {
            policy: policy.clone(),
        };
        self.carry_out(change, actor).await?;
        drop(loaded);
        METRICS
            .policy_swaps_total
            .with_label_values(&["activate"])
            .inc();
        tracing::info!(%policy, actor, "policy activated");
        Published::from_state(&self.serving().state, policy)
    }

    /// Lets a published policy rank in shadow: it ranks the same requests as the active policy,
    /// but its results are served to no viewer.
    ///
    /// # Errors
    /// Fails if the policy cannot go into shadow from its current state or cannot be loaded, or
    /// if the registry does not answer.
    pub async fn shadow(&self, policy: &PolicyRef, actor: &str) -> Result<Published, DeployError> {
        self.take_step(policy, Event::Shadow(policy.clone()), actor)
            .await
    }

    /// Ends a shadow. Every role that may start a shadow may end it. This does not apply to a
    /// canary.
    ///
    /// # Errors
    /// Fails if the policy is not in shadow, or if the registry does not answer.
    pub async fn end_shadow(
        &self,
        policy: &PolicyRef,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let _changing = self.begin_change().await;
        let serving = self.serving.load_full();
        if !serving.state.shadows.contains(policy) {
            require_published(&serving.state, policy)?;
            return Err(DeployError::Conflict(format!("{policy} is not in shadow")));
        }
        let change = Change::Canary {
            policy: policy.clone(),
            percent: 0.0,
        };
        self.carry_out(change, actor).await?;
        tracing::info!(%policy, actor, "shadow ended");
        Published::from_state(&self.serving().state, policy)
    }

    /// Serves the policy to a share of the viewers who are in no experiment. 0 ends a canary or
    /// a shadow.
    ///
    /// # Errors
    /// The same as for [`Deploy::shadow`].
    pub async fn canary(
        &self,
        policy: &PolicyRef,
        percent: f64,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let event = Event::Canary {
            policy: policy.clone(),
            percent,
        };
        self.take_step(policy, event, actor).await
    }

    /// Retires a version for good. Rollbacks skip it.
    ///
    /// # Errors
    /// Fails if the policy serves any viewer, or if the registry does not answer.
    pub async fn retire(&self, policy: &PolicyRef, actor: &str) -> Result<Published, DeployError> {
        self.take_step(policy, Event::Retire(policy.clone()), actor)
            .await
    }

    async fn take_step(
        &self,
        policy: &PolicyRef,
        event: Event,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let _loaded = match &event {
            Event::Shadow(_) | Event::Canary { .. } => self.load_early(policy).await,
            _ => None,
        };
        let _changing = self.begin_change().await;
        let serving = self.serving.load_full();
        let (_, changes) = step(&serving.state, &event)?;
        // Loaded before the change is recorded, as for an activation.
        let begins = matches!(
            changes.first(),
            Some(Change::Shadow { .. } | Change::Canary { .. })
        );
        let loaded = match begins && !matches!(event, Event::Canary { percent: 0.0, .. }) {
            true => Some(self.loader.load(&serving.state, policy, None).await?),
            false => None,
        };
        if loaded.is_some() && matches!(event, Event::Canary { .. }) {
            self.refuse_downgrade(&serving.state, policy)?;
        }
        for change in changes {
            let (action, detail) = (change.action(), change.detail());
            self.carry_out(change, actor).await?;
            tracing::info!(%policy, action, %detail, actor, "policy changed");
        }
        drop(loaded);
        Published::from_state(&self.serving().state, policy)
    }

    /// Switches a flag on or off.
    ///
    /// # Errors
    /// Fails if the registry does not answer.
    pub async fn set_flag(
        &self,
        name: &str,
        enabled: bool,
        actor: &str,
    ) -> Result<(), DeployError> {
        let _changing = self.begin_change().await;
        self.carry_out(
            Change::SetFlag {
                name: name.to_owned(),
                enabled,
            },
            actor,
        )
        .await?;
        Ok(())
    }
}
