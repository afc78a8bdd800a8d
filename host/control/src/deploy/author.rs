//! Who makes a change, and what the caller expects of the state that it changes.

use super::{Deploy, DeployError};
use nova_model::artifact::PolicyRef;
use tokio::sync::MutexGuard;

#[derive(Debug, Clone, Copy)]
pub struct Author<'a> {
    /// The token's subject, or `watcher`, `cli`, `host`.
    pub actor: &'a str,
    /// The revision on which the caller based the change. If the registry has another one, nothing
    /// changes.
    pub if_revision: Option<i64>,
    /// The policy that the caller expects to be active. If another one is, nothing changes.
    pub expected_active: Option<&'a PolicyRef>,
}

impl<'a> From<&'a str> for Author<'a> {
    fn from(actor: &'a str) -> Self {
        Self {
            actor,
            if_revision: None,
            expected_active: None,
        }
    }
}

impl<'a> From<&'a String> for Author<'a> {
    fn from(actor: &'a String) -> Self {
        actor.as_str().into()
    }
}

impl<'a> Author<'a> {
    /// Returns the same author with an expected active policy.
    #[must_use]
    pub fn expecting(self, active: Option<&'a PolicyRef>) -> Self {
        Self {
            expected_active: active,
            ..self
        }
    }
}

impl Deploy {
    /// Takes the lock `changing` for a change whose author expects a state.
    ///
    /// # Errors
    /// Fails if the state is another one.
    pub(super) async fn begin_change_by(
        &self,
        author: Author<'_>,
    ) -> Result<MutexGuard<'_, ()>, DeployError> {
        let changing = self.begin_change().await;
        self.require_state(author).await?;
        Ok(changing)
    }

    /// Checks that the state is the one that the author expects.
    ///
    /// # Errors
    /// Fails if the state is another one.
    pub async fn require_state(&self, author: Author<'_>) -> Result<(), DeployError> {
        let is_other = author
            .if_revision
            .is_some_and(|revision| revision != self.revision());
        // The caller may have read a newer revision on another host.
        if is_other
            && !self.offline.is_unavailable()
            && let Err(error) = self.refresh().await
        {
            tracing::debug!(
                error = format!("{error:#}"),
                "could not read the registry for a change with a precondition"
            );
        }
        self.check_state(author)
    }

    fn check_state(&self, author: Author<'_>) -> Result<(), DeployError> {
        let serving = self.serving();
        let current = serving.state.revision;
        if let Some(expected) = author.if_revision
            && expected != current
        {
            return Err(DeployError::Outdated { expected, current });
        }
        match (author.expected_active, serving.state.activations.last()) {
            (Some(expected), Some(active)) if expected != active => Err(DeployError::Conflict(
                format!("{active} is active, not {expected}; nothing was changed"),
            )),
            _ => Ok(()),
        }
    }

    /// Returns the error of a change that another one came before: the author's precondition does
    /// not hold any more.
    pub(super) fn in_terms_of(&self, author: Author<'_>, error: DeployError) -> DeployError {
        match error {
            error @ (DeployError::Conflict(_) | DeployError::Overtaken(_)) => {
                match self.check_state(author) {
                    Err(outdated @ DeployError::Outdated { .. }) => outdated,
                    _ => error,
                }
            }
            other => other,
        }
    }
}
