//! Signatures where they matter once more: when what the registry holds is about to serve.

use super::{Deploy, DeployError};
use crate::policy::admission::signature::Proof;
use crate::policy::admission::{Reason, Refusal};
use crate::policy::artifact::{PerStage, PolicyRef};
use crate::policy::module::Module;
use crate::policy::registry::{PublishedPolicy, RegistryState};
use std::sync::Arc;

impl Deploy {
    /// Nothing, where no keys are configured. What this program ships, or one before it on this host, needs no signature.
    pub(super) async fn check_signature(
        &self,
        published: &PublishedPolicy,
        modules: &PerStage<Arc<Module>>,
    ) -> Result<(), DeployError> {
        let (keys, spec) = (self.engine.trusted_keys(), &published.spec);
        if keys.is_empty() || keys.shipped.has(spec, modules) {
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
                "is not signed, and policy.trusted_keys asks for it; publish a signed version"
                    .to_owned(),
            )
        };
        let digest = spec.signature.ok_or_else(unsigned)?;
        let bytes = self.registry.module(digest).await?.ok_or_else(unsigned)?;
        let proof = Proof::from_bytes(&bytes).map_err(refuse)?;
        Ok(proof.proves(keys, spec, modules).map_err(refuse)?)
    }

    /// Where policies are signed, an old one that is signed as well must not come back to serve viewers, whatever served
    /// in between: that is what a rollback is for, which says so in the audit log.
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
                "{newer} was active, and where policies are signed {policy} comes back by a rollback alone; or publish it under a higher version"
            ))),
            _ => Ok(()),
        }
    }
}
