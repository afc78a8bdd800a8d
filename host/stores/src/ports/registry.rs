//! Port: the registry, one truth for all hosts that share it.

use async_trait::async_trait;
use nova_model::artifact::Digest;
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::audit_head::AuditHead;
use nova_model::prune::StoredModule;
use nova_model::registry::{Change, RegistryState};

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The change is based on an older state of the registry.
    #[error("{0}")]
    Conflict(String),
    /// The registry gave no answer, or cannot take any change now. The same call may succeed
    /// later. An adapter decides this for each error, so nothing converts to it by itself.
    #[error("the registry is unavailable: {0:#}")]
    Unavailable(anyhow::Error),
    /// The registry answered and refused. It would refuse the same call again, so the call is
    /// neither repeated nor kept for later.
    #[error("the registry refused this: {0:#}")]
    Refused(anyhow::Error),
    /// The change would leave the audit log unauthenticated.
    #[error("{0}")]
    NoAuditKey(&'static str),
    /// The stored bytes of a module are not those of its digest. They must not run.
    #[error(
        "the registry's bytes of module {0} do not have this digest; restore the registry from a backup, or publish the policy again under a new version"
    )]
    Damaged(Digest),
}

impl RegistryError {
    /// Reports if the same call would fail again until somebody mends the registry, this host or
    /// the call.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Conflict(_) => false,
            Self::Refused(_) | Self::NoAuditKey(_) | Self::Damaged(_) => true,
        }
    }
}

#[async_trait]
pub trait Registry: Send + Sync + std::fmt::Debug + 'static {
    async fn load(&self) -> Result<RegistryState, RegistryError>;

    /// Returns the revision and the hash of its audit entry. This is cheap enough to call every
    /// second.
    async fn head(&self) -> Result<AuditHead, RegistryError>;

    /// Returns the revision only.
    async fn revision(&self) -> Result<i64, RegistryError> {
        Ok(self.head().await?.revision)
    }

    /// Applies a change if the registry is still at `expected_revision`. Returns the new
    /// revision. The modules of a publication must be stored before.
    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        expected_revision: i64,
    ) -> Result<i64, RegistryError>;

    /// Stores a module, unless its bytes are there. Damaged bytes are replaced. This is not a part
    /// of the publication, because the transfer may take seconds, and no other change may have to
    /// wait for it.
    async fn store_module(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError>;

    /// Returns the stored bytes of a module, which may be damaged. Use [`Registry::module`].
    async fn stored_module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError>;

    /// Returns the bytes of a module. Every engine's bytes are compared with the digest here, so
    /// no other bytes than the published ones ever run.
    ///
    /// # Errors
    /// Fails if the registry does not answer, or if its bytes do not have this digest.
    async fn module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        let Some(bytes) = self.stored_module(digest).await? else {
            return Ok(None);
        };
        // A module can have twenty megabytes, which take too long for a thread of the runtime.
        let hashed = tokio::task::spawn_blocking(move || (Digest::from_content(&bytes), bytes));
        let hashed = hashed.await;
        let (found, bytes) = hashed.map_err(|error| RegistryError::Unavailable(error.into()))?;
        if found == digest {
            Ok(Some(bytes))
        } else {
            Err(RegistryError::Damaged(digest))
        }
    }

    /// Returns the digests and sizes of all stored modules.
    async fn stored_modules(&self) -> Result<Vec<StoredModule>, RegistryError>;

    /// Returns a part of the audit log: at most `limit` entries, and fewer if their details are
    /// large. It is empty only if there are no more entries.
    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError>;

    /// Notes that a host is present, and returns the number of hosts that were seen lately,
    /// itself included. A registry that only one host can use returns 1.
    async fn present_hosts(&self, _host: &str) -> Result<u64, RegistryError> {
        Ok(1)
    }

    /// Returns when another process may have changed something. A registry that cannot detect
    /// this never returns, so the caller must also poll.
    async fn changed(&self) {
        std::future::pending().await
    }
}
