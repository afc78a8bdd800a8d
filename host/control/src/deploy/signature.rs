//! Second signature check: a policy from the registry is checked again before it serves.

use super::{Deploy, DeployError};
use nova_model::artifact::{PerStage, PolicyRef};
use nova_model::registry::{PublishedPolicy, RegistryState};
use nova_policy::admission::{Reason, Refusal};
use nova_policy::module::Module;
use nova_policy::signature::Proof;
use std::sync::Arc;

impl Deploy {
    /// Checks the signature of a published policy. Does nothing if no keys are configured. A
    /// policy that this binary bundles needs no signature, and neither does one that an earlier
    /// binary on this host bundled.
    pub(super) async fn check_signature(
        &self,
        published: &PublishedPolicy,
        modules: &PerStage<Arc<Module>>,
    ) -> Result<(), DeployError> {
        let (keys, spec) = (self.engine.trusted_keys(), &published.spec);
        if keys.is_empty() || keys.bundled.has(spec, modules) {
            return Ok(());
        }
        let refuse = |why: String| Refusal {
            reasons: vec![Reason::whole(
                "signature",
                format!("{}: {why}", spec.policy),
            )],
        };
        let unsigned = || {
            refuse(
                "is not signed, but policy.trusted_keys requires it; publish a signed version"
                    .to_owned(),
            )
        };
        let digest = spec.signature.ok_or_else(unsigned)?;
        let bytes = self.registry.module(digest).await?.ok_or_else(unsigned)?;
        let proof = Proof::from_bytes(&bytes).map_err(refuse)?;
        Ok(proof.proves(keys, spec, modules).map_err(refuse)?)
    }

    /// Refuses to activate a version that is older than one that was active before, if
    /// signatures are required. An old version that is signed as well must not serve viewers
    /// again, even if another policy served in between. A rollback allows this, because the
    /// audit log shows it as a rollback.
    pub(super) fn refuse_downgrade(
        &self,
        state: &RegistryState,
        policy: &PolicyRef,
    ) -> Result<(), DeployError> {
        let is_active = state.activations.last() == Some(policy);
        if self.engine.trusted_keys().is_empty() || is_active {
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
}
