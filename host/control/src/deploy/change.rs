//! Lifecycle steps of policies, and flags.

use super::attempt::Attempts;
use super::{Author, Deploy, DeployError, Published};
use crate::loader::require_published;
use nova_model::artifact::PolicyRef;
use nova_model::lifecycle::{Event, step};
use nova_model::registry::Change;
use nova_support::metrics::METRICS;

impl Deploy {
    /// Makes a published policy the active one.
    ///
    /// # Errors
    /// Fails if the policy is not published, is out of service or cannot be loaded, or if the
    /// registry does not answer.
    pub async fn activate<'a>(
        &self,
        policy: &PolicyRef,
        author: impl Into<Author<'a>>,
    ) -> Result<Published, DeployError> {
        let author = author.into();
        let mut attempts = Attempts::new();
        loop {
            let made = self.try_to_activate(policy, author).await;
            if !attempts.again(&made) {
                return self.finish(author, made).await;
            }
        }
    }

    async fn try_to_activate(
        &self,
        policy: &PolicyRef,
        author: Author<'_>,
    ) -> Result<Published, DeployError> {
        let mut early = self.load_early([(policy.clone(), None)]).await;
        let _changing = self.begin_change_by(author).await?;
        let actor = author.actor;
        let serving = self.serving.load_full();
        let (_, changes) = step(&serving.state, &Event::Activate(policy.clone()))?;
        // An active policy that this host took out of its service stays so until it is lifted.
        let published = require_published(&serving.state, policy)?;
        let is_withdrawn = serving.withdrawn.contains(&published.digest);
        if changes.is_empty() && (serving.active.spec.policy == *policy || is_withdrawn) {
            return Published::from_state(&serving.state, policy);
        }
        self.refuse_downgrade(&serving.state, policy)?;
        // Loaded before the change is recorded; see the protocol in `deploy/mod.rs`.
        self.require_loaded(&mut early, &serving.state, policy, None)?;
        let change = Change::Activate {
            policy: policy.clone(),
        };
        self.carry_out(change, actor).await?;
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
    pub async fn shadow<'a>(
        &self,
        policy: &PolicyRef,
        author: impl Into<Author<'a>>,
    ) -> Result<Published, DeployError> {
        self.take_step(policy, Event::Shadow(policy.clone()), author.into())
            .await
    }

    /// Ends a shadow. Every role that may start a shadow may end it. This does not apply to a
    /// canary.
    ///
    /// # Errors
    /// Fails if the policy is not in shadow, or if the registry does not answer.
    pub async fn end_shadow<'a>(
        &self,
        policy: &PolicyRef,
        author: impl Into<Author<'a>>,
    ) -> Result<Published, DeployError> {
        let author = author.into();
        let mut attempts = Attempts::new();
        loop {
            let made = self.try_to_end_shadow(policy, author).await;
            if !attempts.again(&made) {
                return self.finish(author, made).await;
            }
        }
    }

    async fn try_to_end_shadow(
        &self,
        policy: &PolicyRef,
        author: Author<'_>,
    ) -> Result<Published, DeployError> {
        let _changing = self.begin_change_by(author).await?;
        let serving = self.serving.load_full();
        if !serving.state.shadows.contains(policy) {
            require_published(&serving.state, policy)?;
            return Err(DeployError::Conflict(format!("{policy} is not in shadow")));
        }
        let change = Change::Canary {
            policy: policy.clone(),
            percent: 0.0,
        };
        self.carry_out(change, author.actor).await?;
        tracing::info!(%policy, actor = author.actor, "shadow ended");
        Published::from_state(&self.serving().state, policy)
    }

    /// Serves the policy to a share of the viewers who are in no experiment. 0 ends a canary or
    /// a shadow.
    ///
    /// # Errors
    /// The same as for [`Deploy::shadow`].
    pub async fn canary<'a>(
        &self,
        policy: &PolicyRef,
        percent: f64,
        author: impl Into<Author<'a>>,
    ) -> Result<Published, DeployError> {
        let event = Event::Canary {
            policy: policy.clone(),
            percent,
        };
        self.take_step(policy, event, author.into()).await
    }

    /// Retires a version for good. Rollbacks skip it.
    ///
    /// # Errors
    /// Fails if the policy serves any viewer, or if the registry does not answer.
    pub async fn retire<'a>(
        &self,
        policy: &PolicyRef,
        author: impl Into<Author<'a>>,
    ) -> Result<Published, DeployError> {
        self.take_step(policy, Event::Retire(policy.clone()), author.into())
            .await
    }

    async fn take_step(
        &self,
        policy: &PolicyRef,
        event: Event,
        author: Author<'_>,
    ) -> Result<Published, DeployError> {
        let mut attempts = Attempts::new();
        loop {
            let made = self.try_to_take_step(policy, &event, author).await;
            if !attempts.again(&made) {
                return self.finish(author, made).await;
            }
        }
    }

    async fn try_to_take_step(
        &self,
        policy: &PolicyRef,
        event: &Event,
        author: Author<'_>,
    ) -> Result<Published, DeployError> {
        let actor = author.actor;
        let needed = matches!(event, Event::Shadow(_) | Event::Canary { .. });
        let needed = needed.then(|| (policy.clone(), None));
        let mut early = self.load_early(needed).await;
        let _changing = self.begin_change_by(author).await?;
        let serving = self.serving.load_full();
        let (_, changes) = step(&serving.state, event)?;
        // Loaded before the change is recorded, as for an activation.
        let begins = matches!(
            changes.first(),
            Some(Change::Shadow { .. } | Change::Canary { .. })
        );
        if begins && !matches!(event, Event::Canary { percent: 0.0, .. }) {
            self.require_loaded(&mut early, &serving.state, policy, None)?;
            if matches!(event, Event::Canary { .. }) {
                self.refuse_downgrade(&serving.state, policy)?;
            }
        }
        for change in changes {
            let (action, detail) = (change.action(), change.detail());
            self.carry_out(change, actor).await?;
            tracing::info!(%policy, action, %detail, actor, "policy changed");
        }
        Published::from_state(&self.serving().state, policy)
    }

    /// Switches a flag on or off.
    ///
    /// # Errors
    /// Fails if the registry does not answer.
    pub async fn set_flag<'a>(
        &self,
        name: &str,
        enabled: bool,
        author: impl Into<Author<'a>>,
    ) -> Result<(), DeployError> {
        let author = author.into();
        let mut attempts = Attempts::new();
        loop {
            let made = self.try_to_set_flag(name, enabled, author).await;
            if !attempts.again(&made) {
                return self.finish(author, made).await;
            }
        }
    }

    async fn try_to_set_flag(
        &self,
        name: &str,
        enabled: bool,
        author: Author<'_>,
    ) -> Result<(), DeployError> {
        let _changing = self.begin_change_by(author).await?;
        let change = Change::SetFlag {
            name: name.to_owned(),
            enabled,
        };
        self.carry_out(change, author.actor).await.map(drop)
    }
}
