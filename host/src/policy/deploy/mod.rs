//! What serves, and how it is changed. Readers take one pointer; changes are made one at a time,
//! first in the registry, then by exchanging that pointer.

mod admissions;
mod alone;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod alone_tests;
mod change;
mod experiments;
mod follow;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod late_tests;
mod load;
mod modules;
mod publish;
mod quarantine;
mod signature;
mod status;

use super::admission::Refusal;
use super::artifact::{Digest, PolicyRef};
use super::budget::Outcomes;
use super::builtin;
use super::engine::Engine;
use super::last_good::Away;
pub use super::lifecycle::PolicyState;
use super::lifecycle::{Refused, rollback_targets};
use super::loaded::LoadedPolicy;
use super::registry::{
    Change, PublishedPolicy, Quarantine, Registry, RegistryError, RegistryState,
};
use crate::experiments::routing::{CanaryShare, RunningExperiment};
use crate::experiments::spec::{ExperimentState, FieldError};
use admissions::Admissions;
use arc_swap::ArcSwap;
use modules::{CompiledModules, Late};
pub use status::ServingStatus;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;
use tokio::sync::Notify;

/// Former policies kept compiled for rollback. Two operators' worth of second thoughts.
pub(super) const WARM_POLICIES: usize = 3;

/// Everything a request needs to know of policies, at one revision.
#[derive(Debug)]
pub struct Serving {
    pub state: RegistryState,
    pub active: Arc<LoadedPolicy>,
    /// Former policies, the most recent first; `warm[0]` is what a rollback returns to.
    pub warm: Vec<Arc<LoadedPolicy>>,
    pub canary: Option<CanaryShare>,
    /// Policies that rank beside the active one and serve nobody.
    pub shadows: Vec<Arc<LoadedPolicy>>,
    /// Running experiments, highest priority first.
    pub experiments: Vec<RunningExperiment>,
    pub needs_attributes: bool,
}

impl Serving {
    /// `None` when even the last resort is in quarantine: then the native copy ranks.
    pub fn active_in_service(&self) -> Option<&Arc<LoadedPolicy>> {
        let quarantined = &self.state.quarantined;
        (!quarantined.contains_key(&self.active.effective_digest)).then_some(&self.active)
    }

    /// Whether the state names a policy to serve that could not be had.
    fn lacks_something(&self) -> bool {
        let state = &self.state;
        let active = state.activations.last();
        let experiments = state.experiments.values();
        let running = experiments.filter(|experiment| experiment.state == ExperimentState::Running);
        active.is_some_and(|policy| *policy != self.active.spec.policy)
            || self.warm.len() < rollback_targets(state).take(WARM_POLICIES).count()
            || self.canary.is_some() != state.canary.is_some()
            || self.shadows.len() < state.shadows.len()
            || self.experiments.len() < running.count()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("other uploads are being tried; nothing was changed, try again in a minute")]
    Busy,
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

impl From<Refused> for DeployError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown(_) => DeployError::NotFound(refused.to_string()),
            Refused::Percent => DeployError::Invalid(vec![("percent".into(), refused.to_string())]),
            Refused::Conflict(reason) => DeployError::Conflict(reason),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Published {
    pub policy: PolicyRef,
    pub digest: Digest,
    pub state: PolicyState,
    /// Of a canary.
    pub percent: Option<f64>,
    /// `false`: this very version was there before.
    pub new: bool,
}

/// Where a change is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// In the registry, and so on every host.
    Everywhere,
    /// On this host alone, until the registry answers.
    ThisHost,
}

#[derive(Debug)]
pub struct Deploy {
    engine: Engine,
    registry: Arc<dyn Registry>,
    serving: ArcSwap<Serving>,
    compiled: CompiledModules,
    admissions: Admissions,
    bound: Mutex<HashMap<(PolicyRef, Digest), Weak<LoadedPolicy>>>,
    outcomes: Mutex<HashMap<Digest, Weak<Outcomes>>>,
    /// What this binary ships, so that the last resort of a rollback is always warm.
    baseline: Arc<LoadedPolicy>,
    /// Changes are made one at a time.
    changing: tokio::sync::Mutex<()>,
    /// Held only while the pointer is exchanged, never while the registry is asked: a quarantine does
    /// not wait for it.
    exchanging: tokio::sync::Mutex<()>,
    /// Quarantines decided here that the registry may not have yet.
    withdrawn: Mutex<BTreeMap<Digest, Quarantine>>,
    /// Whether something has to be brought into the registry, and the call to do so.
    unsettled: AtomicBool,
    settle_soon: Arc<Notify>,
    /// What is compiled in the background.
    late: Late,
    /// Where something that should serve does not, because it could not be had in time or at all: when the pointer was exchanged
    /// without it last.
    lacking_since: Mutex<Option<Instant>>,
    /// Whether what this binary ships is in the registry.
    prepared: AtomicBool,
    /// Whether the registry did not answer when it was last looked at.
    away: AtomicBool,
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
            active: baseline.loaded.clone(),
            warm: Vec::new(),
            canary: None,
            shadows: Vec::new(),
            experiments: Vec::new(),
            needs_attributes: false,
        };
        let deploy = Self {
            engine,
            registry,
            serving: ArcSwap::from_pointee(serving),
            compiled,
            admissions: Admissions::default(),
            bound: Mutex::default(),
            outcomes: Mutex::default(),
            baseline: baseline.loaded,
            changing: tokio::sync::Mutex::default(),
            exchanging: tokio::sync::Mutex::default(),
            withdrawn: Mutex::default(),
            unsettled: AtomicBool::new(false),
            settle_soon: Arc::default(),
            late: Late::default(),
            lacking_since: Mutex::default(),
            prepared: AtomicBool::new(false),
            away: AtomicBool::new(false),
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

    /// Records a change and serves by it: when this returns, this host does. While the registry does not
    /// answer, a host makes some changes alone.
    async fn carry_out(&self, change: Change, actor: &str) -> Result<Reach, DeployError> {
        let recorded = if self.makes_alone(&change) {
            // An operator in an outage does not wait for a deadline that passed for others a moment ago.
            Err(DeployError::Unavailable(Away.into()))
        } else {
            self.record(&change, actor).await
        };
        match recorded {
            Err(DeployError::Unavailable(cause)) => {
                self.carry_out_alone(&change, actor, cause).await
            }
            recorded => recorded.map(|()| Reach::Everywhere),
        }
    }

    async fn record(&self, change: &Change, actor: &str) -> Result<(), DeployError> {
        // What this host did alone was done on a state that the registry does not have.
        if self.is_ahead() {
            let waiting = anyhow::Error::from(Away).context("local changes wait for the registry");
            return Err(DeployError::Unavailable(waiting));
        }
        let revision = self.serving().state.revision;
        if let Err(error) = self.registry.apply(change, actor, revision).await {
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
    state.policy(policy).ok_or_else(|| {
        DeployError::NotFound(format!(
            "no policy {policy} is published; see: nova policy list"
        ))
    })
}
