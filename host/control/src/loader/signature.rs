//! Second signature check: a policy from the registry is checked again before it serves.

use super::Loader;
use super::error::LoadError;
use nova_model::artifact::PerStage;
use nova_model::registry::PublishedPolicy;
use nova_policy::admission::{Reason, Refusal};
use nova_policy::module::Module;
use nova_policy::signature::Proof;
use std::sync::Arc;

impl Loader {
    /// Reports if policies must be signed by a trusted key.
    pub fn requires_signatures(&self) -> bool {
        !self.modules.engine.trusted_keys().is_empty()
    }

    /// Checks the signature of a published policy. Does nothing if no keys are configured. A
    /// policy that this binary bundles needs no signature, and neither does one that an earlier
    /// binary on this host bundled.
    pub(super) async fn check_signature(
        &self,
        published: &PublishedPolicy,
        modules: &PerStage<Arc<Module>>,
    ) -> Result<(), LoadError> {
        let (keys, spec) = (self.modules.engine.trusted_keys(), &published.spec);
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
        let bytes = self.modules.registry.module(digest).await?;
        let proof = Proof::from_bytes(&bytes.ok_or_else(unsigned)?).map_err(refuse)?;
        Ok(proof.proves(keys, spec, modules).map_err(refuse)?)
    }
}
