//! Port: the registry, one truth for all hosts that share it.

use async_trait::async_trait;
use nova_model::artifact::Digest;
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::registry::{Change, RegistryState};

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The change is based on an older state of the registry.
    #[error("{0}")]
    Conflict(String),
    #[error("the registry is unavailable: {0:#}")]
    Unavailable(#[from] anyhow::Error),
}

#[async_trait]
pub trait Registry: Send + Sync + std::fmt::Debug + 'static {
    async fn load(&self) -> Result<RegistryState, RegistryError>;

    /// Returns the revision only. This is cheap enough to call every second.
    async fn revision(&self) -> Result<i64, RegistryError>;

    /// Applies a change if the registry is still at `expected_revision`. Returns the new
    /// revision.
    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        expected_revision: i64,
    ) -> Result<i64, RegistryError>;

    async fn module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError>;

    /// Returns a part of the audit log, at most `limit` entries.
    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError>;

    /// Returns when another process may have changed something. A registry that cannot detect
    /// this never returns, so the caller must also poll.
    async fn changed(&self) {
        std::future::pending().await
    }
}
