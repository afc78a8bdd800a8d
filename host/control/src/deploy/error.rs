//! Reasons why a change was not made, or not yet.

use crate::loader::LoadError;
use nova_model::invalid_field::InvalidField;
use nova_model::lifecycle::Refused;
use nova_model::text::REASON;
use nova_policy::admission::Refusal;
use nova_stores::ports::registry::RegistryError;

#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    /// Another change came in between, again and again.
    #[error("{0}")]
    Overtaken(String),
    /// The author of the change expected another revision.
    #[error(
        "the registry is at revision {current}, not {expected}; nothing was changed, read its state again and repeat the request with the new revision"
    )]
    Outdated { expected: i64, current: i64 },
    #[error("too many other uploads are being checked; nothing was changed, try again in a minute")]
    Busy,
    #[error("invalid")]
    Invalid(Vec<InvalidField>),
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
    /// The registry refused the change and would refuse it again.
    #[error("{0:#}")]
    RegistryRefused(anyhow::Error),
    /// The change is in the registry, but this host could not load it yet. It tries again every
    /// second.
    #[error("the change is recorded, but not yet in force on this host: {0:#}")]
    Recorded(anyhow::Error),
}

impl DeployError {
    /// Reports if the registry refused the change for good, so that the change is not made on this
    /// host either.
    pub fn is_refused_by_registry(&self) -> bool {
        match self {
            // A conflict of this kind is a missing audit key.
            Self::RegistryRefused(_) | Self::Conflict(_) | Self::Refused(_) => true,
            Self::NotFound(_)
            | Self::Outdated { .. }
            | Self::Overtaken(_)
            | Self::Busy
            | Self::Invalid(_)
            | Self::Unavailable(_)
            | Self::Recorded(_) => false,
        }
    }
}

/// Checks the reason for a change, before anything is changed.
///
/// # Errors
/// Fails if the reason is too long, or has characters that the registry cannot hold.
pub(super) fn check_reason(reason: &str) -> Result<(), DeployError> {
    let checked = REASON.check(reason);
    checked.map_err(|message| DeployError::Invalid(vec![("reason".into(), message)]))
}

impl From<RegistryError> for DeployError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Conflict(reason) => DeployError::Overtaken(reason),
            RegistryError::Unavailable(error) => DeployError::Unavailable(error),
            RegistryError::Refused(error) => DeployError::RegistryRefused(error),
            RegistryError::NoAuditKey(reason) => DeployError::Conflict(reason.to_owned()),
            RegistryError::Damaged(_) => DeployError::Refused(Refusal::one(error.to_string())),
        }
    }
}

impl From<LoadError> for DeployError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Refused(refusal) => DeployError::Refused(refusal),
            LoadError::NotFound(reason) => DeployError::NotFound(reason),
            LoadError::NotLoaded(_) => DeployError::Overtaken(error.to_string()),
            LoadError::Unavailable(error) => DeployError::Unavailable(error),
        }
    }
}

impl From<Refused> for DeployError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown(_) => DeployError::NotFound(refused.to_string()),
            Refused::Percent => DeployError::Invalid(vec![("percent".into(), refused.to_string())]),
            Refused::Conflict(reason) => DeployError::Conflict(reason),
        }
    }
}
