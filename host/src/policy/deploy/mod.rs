//! What serves, and how it is changed. Readers take one pointer; changes are made one at a time,
//! first in the registry, then by exchanging that pointer.

mod change;
mod experiments;
mod follow;
mod load;
mod modules;
mod publish;

use super::admission::Refusal;
use super::artifact::{Digest, PolicyRef};
use super::builtin;
use super::engine::Engine;
use super::loaded::LoadedPolicy;
use super::registry::{Change, PublishedPolicy, Registry, RegistryError, RegistryState};
use crate::experiments::routing::RunningExperiment;
use crate::experiments::spec::FieldError;
use arc_swap::ArcSwap;
use modules::CompiledModules;
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};

/// Former policies kept compiled for rollback. Two operators' worth of second thoughts.
pub(super) const WARM_POLICIES: usize = 3;

/// Everything a request needs to know of policies, at one revision.
#[derive(Debug)]
pub struct Serving {
    pub state: RegistryState,
    pub active: Arc<LoadedPolicy>,
    /// Former policies, the most recent first; `warm[0]` is what a rollback returns to.
    pub warm: Vec<Arc<LoadedPolicy>>,
    /// Running experiments, highest priority first.
    pub experiments: Vec<RunningExperiment>,
    pub needs_attributes: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("invalid")]
    Invalid(Vec<FieldError>),
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
    /// The change is in the registry, but this host could not load it yet; it tries again every second.
    #[error("recorded, and not yet in force on this host: {0:#}")]
    Recorded(anyhow::Error),
}

impl From<RegistryError> for DeployError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Conflict(reason) => DeployError::Conflict(reason),
            RegistryError::Unavailable(error) => DeployError::Unavailable(error),
        }
    }
}

/// Where a policy stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum PolicyState {
    Published,
    Active,
}

#[derive(Debug, Clone)]
pub struct Published {
    pub policy: PolicyRef,
    pub digest: Digest,
    pub state: PolicyState,
    /// `false`: this very version was there before.
    pub new: bool,
}

#[derive(Debug)]
pub struct Deploy {
    engine: Engine,
    registry: Arc<dyn Registry>,
    serving: ArcSwap<Serving>,
    compiled: CompiledModules,
    bound: Mutex<HashMap<(PolicyRef, Digest), Weak<LoadedPolicy>>>,
    /// Changes are made one at a time.
    changing: tokio::sync::Mutex<()>,
    /// Whether what this binary ships is in the registry.
    prepared: AtomicBool,
    /// A development host lets a policy that says so follow its sources.
    development: bool,
}

impl Deploy {
    /// Publishes what this binary ships, activates `baseline` if nothing ever was, and loads what serves.
    /// While the registry does not answer, what was last loaded from it serves, or the built-in baseline;
    /// [`Deploy::follow_registry`] does the rest once it answers.
    ///
    /// # Errors
    /// When what this binary ships is refused.
    pub async fn start(
        engine: Engine,
        registry: Arc<dyn Registry>,
        development: bool,
    ) -> anyhow::Result<Arc<Self>> {
        let compiled = CompiledModules::default();
        let baseline = publish::shipped(
            &engine,
            &compiled,
            builtin::recipes().next().unwrap_or_default(),
        )
        .await?;
        let serving = Serving {
            state: RegistryState::default(),
            active: baseline.loaded,
            warm: Vec::new(),
            experiments: Vec::new(),
            needs_attributes: false,
        };
        let deploy = Self {
            engine,
            registry,
            serving: ArcSwap::from_pointee(serving),
            compiled,
            bound: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            prepared: AtomicBool::new(false),
            development,
        };
        deploy.show_active();
        match deploy.prepare().await {
            Err(DeployError::Unavailable(cause) | DeployError::Recorded(cause)) => tracing::warn!(
                cause = format!("{cause:#}"),
                policy = %deploy.serving().active.spec.policy,
                "the registry does not answer; trying again every second"
            ),
            other => other?,
        }
        Ok(Arc::new(deploy))
    }

    /// The one pointer that a request reads.
    pub fn serving(&self) -> arc_swap::Guard<Arc<Serving>> {
        self.serving.load()
    }

    pub fn registry(&self) -> &Arc<dyn Registry> {
        &self.registry
    }

    pub fn is_development(&self) -> bool {
        self.development
    }

    /// Records a change and serves by it. When this returns, this host does.
    async fn carry_out(&self, change: Change, actor: &str) -> Result<(), DeployError> {
        let revision = self.serving().state.revision;
        if let Err(error) = self.registry.apply(&change, actor, revision).await {
            if matches!(error, RegistryError::Conflict(_)) {
                self.refresh().await.map_err(DeployError::Unavailable)?;
            }
            return Err(error.into());
        }
        self.refresh().await.map_err(DeployError::Recorded)
    }
}

fn require_published<'a>(
    state: &'a RegistryState,
    policy: &PolicyRef,
) -> Result<&'a PublishedPolicy, DeployError> {
    state
        .policy(policy)
        .ok_or_else(|| DeployError::NotFound(format!("no policy {policy} is published")))
}
