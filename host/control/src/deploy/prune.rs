//! Clean-up of the registry, and the quotas that make one necessary.

use super::attempt::Attempts;
use super::{Author, Deploy, DeployError};
use nova_model::artifact::Digest;
use nova_model::prune::{Quotas, StoredModule, Unused};
use nova_model::registry::Change;
use nova_policy::admission::{Admitted, Refusal};

impl Deploy {
    /// Sets the quotas of the registry, in place of the default ones.
    pub fn set_quotas(&self, quotas: Quotas) {
        self.quotas.store(quotas.into());
    }

    /// Removes `-dev.N` versions that nothing uses, and modules without a policy. With `dry_run`,
    /// returns what would be removed.
    ///
    /// # Errors
    /// Fails if the author expects another state, or if the registry does not answer.
    pub async fn prune<'a>(
        &self,
        dry_run: bool,
        author: impl Into<Author<'a>>,
    ) -> Result<Unused, DeployError> {
        let author = author.into();
        let mut attempts = Attempts::new();
        loop {
            let made = self.try_to_prune(dry_run, author).await;
            if !attempts.again(&made) {
                return self.finish(author, made).await;
            }
        }
    }

    /// Reports if another `-dev.N` version needs a clean-up first.
    pub(super) fn has_too_many_dev_versions(&self) -> bool {
        let quotas = self.quotas.load();
        quotas.is_dev_full(&self.serving().state)
    }

    async fn try_to_prune(&self, dry_run: bool, author: Author<'_>) -> Result<Unused, DeployError> {
        let stored = self.registry.stored_modules().await?;
        let _changing = self.begin_change_by(author).await?;
        let unused = Unused::of(&self.serving().state, &stored);
        if dry_run || unused.is_empty() {
            return Ok(unused);
        }
        let change = Change::Prune {
            policies: unused.policies.clone(),
            modules: unused.modules.clone(),
        };
        self.carry_out(change, author.actor).await?;
        tracing::info!(
            policies = unused.policies.len(),
            modules = unused.modules.len(),
            bytes = unused.bytes,
            actor = author.actor,
            "unused versions and modules were removed from the registry"
        );
        Ok(unused)
    }

    /// Refuses a publication for which the registry has no room.
    pub(super) async fn check_quotas(&self, admitted: &Admitted) -> Result<(), DeployError> {
        let stored = self.registry.stored_modules().await?;
        let new = admitted.module_bytes.iter();
        let new = new.map(|(digest, bytes): &(Digest, Vec<u8>)| StoredModule {
            digest: *digest,
            bytes: bytes.len() as u64,
        });
        let new: Vec<StoredModule> = new.collect();
        let (serving, quotas) = (self.serving(), self.quotas.load());
        let policy = &admitted.loaded.spec.policy;
        match quotas.refusal(&serving.state, policy, &stored, &new) {
            None => Ok(()),
            Some(reason) => Err(Refusal::one(reason).into()),
        }
    }
}
