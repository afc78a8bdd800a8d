//! Lift: an operator lets a policy serve again that was quarantined, or that hosts took out of
//! their own service.

use super::attempt::Attempts;
use super::error::check_reason;
use super::{Author, Deploy, DeployError, Published};
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::lifecycle::digests_to_lift;
use nova_model::quarantine::Lift;
use nova_model::registry::Change;
use nova_support::clock::unix_ms;

impl Deploy {
    /// Ends the quarantine of a policy and its withdrawals on all hosts. What followed from a
    /// quarantine stays as it is: an operator activates the policy and starts experiments again.
    ///
    /// # Errors
    /// Fails if the policy is not published or not out of service, or if the registry does not
    /// answer.
    pub async fn lift<'a>(
        &self,
        policy: &PolicyRef,
        reason: &str,
        author: impl Into<Author<'a>>,
    ) -> Result<Published, DeployError> {
        check_reason(reason)?;
        let author = author.into();
        let mut attempts = Attempts::new();
        loop {
            let made = self.try_to_lift(policy, reason, author).await;
            if !attempts.again(&made) {
                return self.finish(author, made).await;
            }
        }
    }

    async fn try_to_lift(
        &self,
        policy: &PolicyRef,
        reason: &str,
        author: Author<'_>,
    ) -> Result<Published, DeployError> {
        let actor = author.actor;
        let _changing = self.begin_change_by(author).await?;
        for digest in digests_to_lift(&self.serving().state, policy)? {
            self.lift_digest(digest, policy, reason, actor).await?;
        }
        tracing::warn!(%policy, actor, reason, "a policy was lifted; it may serve again");
        Published::from_state(&self.serving().state, policy)
    }

    async fn lift_digest(
        &self,
        digest: Digest,
        policy: &PolicyRef,
        reason: &str,
        actor: &str,
    ) -> Result<(), DeployError> {
        let lift = Change::Lift {
            digest,
            lift: Lift {
                policy: policy.clone(),
                reason: reason.to_owned(),
                by: actor.to_owned(),
                at_ms: unix_ms(),
                base_revision: self.revision(),
            },
        };
        self.carry_out(lift, actor).await.map(drop)
    }
}
