//! A published policy and its current state.

use super::DeployError;
use crate::loader::require_published;
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::lifecycle::{PolicyState, state_of};
use nova_model::registry::RegistryState;

#[derive(Debug, Clone)]
pub struct Published {
    pub policy: PolicyRef,
    pub digest: Digest,
    pub state: PolicyState,
    /// Share of the viewers, if the policy is a canary.
    pub percent: Option<f64>,
    /// False if this version was already published.
    pub new: bool,
}

impl Published {
    /// Returns a policy that was published before, as the registry's state has it.
    ///
    /// # Errors
    /// Fails if the policy is not published.
    pub(super) fn from_state(
        state: &RegistryState,
        policy: &PolicyRef,
    ) -> Result<Self, DeployError> {
        let canary = state.canary.as_ref().filter(|c| c.policy == *policy);
        Ok(Self {
            policy: policy.clone(),
            digest: require_published(state, policy)?.digest,
            state: state_of(state, policy).unwrap_or(PolicyState::Published),
            percent: canary.map(|canary| canary.percent),
            new: false,
        })
    }
}
