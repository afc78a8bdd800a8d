//! Refusal of downgrades: if signatures are required, an old version that is signed as well must
//! not serve viewers again, even if another policy served in between.

use super::{Deploy, DeployError};
use nova_model::artifact::PolicyRef;
use nova_model::experiments::spec::ExperimentSpec;
use nova_model::registry::RegistryState;

impl Deploy {
    /// Refuses to activate a version that is older than one that was active before, if
    /// signatures are required. A rollback allows this, because the audit log shows it as a
    /// rollback.
    pub(super) fn refuse_downgrade(
        &self,
        state: &RegistryState,
        policy: &PolicyRef,
    ) -> Result<(), DeployError> {
        let is_active = state.activations.last() == Some(policy);
        if !self.loader.requires_signatures() || is_active {
            return Ok(());
        }
        let same_name = |activated: &&PolicyRef| activated.name == policy.name;
        let newest = state.activations.iter().filter(same_name);
        match newest.max_by_key(|activated| &activated.version) {
            Some(newer) if policy.version < newer.version => Err(DeployError::Conflict(format!(
                "{newer} was active, and policies must be signed here, so the older {policy} can only come back by a rollback; use a rollback, or publish it under a higher version"
            ))),
            _ => Ok(()),
        }
    }

    /// Does the same as [`Deploy::refuse_downgrade`] for all variations of an experiment.
    pub(super) fn refuse_downgrades(
        &self,
        state: &RegistryState,
        spec: &ExperimentSpec,
    ) -> Result<(), DeployError> {
        let mut variations = spec.variations.iter();
        variations.try_for_each(|variation| self.refuse_downgrade(state, &variation.policy))
    }
}
