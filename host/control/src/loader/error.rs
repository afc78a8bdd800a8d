//! Reasons why a policy cannot be loaded.

use nova_model::artifact::PolicyRef;
use nova_policy::admission::Refusal;
use nova_stores::ports::registry::RegistryError;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    NotFound(String),
    /// The policy is not in memory, and the caller may not wait for it.
    #[error("{0} is not loaded yet; repeat the request")]
    NotLoaded(PolicyRef),
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
}

impl From<RegistryError> for LoadError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Unavailable(error) => LoadError::Unavailable(error),
            // The loader only reads, and reads have no conflicts. A registry that cannot be read is
            // as good as none: the policies that are loaded serve on.
            other @ (RegistryError::Conflict(_)
            | RegistryError::NoAuditKey(_)
            | RegistryError::Refused(_)) => LoadError::Unavailable(other.into()),
            damaged @ RegistryError::Damaged(_) => {
                LoadError::Refused(Refusal::one(damaged.to_string()))
            }
        }
    }
}
