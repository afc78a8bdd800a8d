//! Serving policies and their changes. Requests read one pointer. Changes are made one at a
//! time: first in the registry, then by swapping that pointer.

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

use super::last_good::Away;
use crate::local_changes::HostRegistry;
use crate::routing::{CanaryShare, RunningExperiment};
use admissions::Admissions;
use arc_swap::ArcSwap;
use modules::{CompiledModules, Late};
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::budget::Outcomes;
use nova_model::experiments::spec::ExperimentState;
use nova_model::invalid_field::InvalidField;
pub use nova_model::lifecycle::PolicyState;
use nova_model::lifecycle::{Refused, rollback_targets};
use nova_model::quarantine::Quarantine;
use nova_model::registry::{Change, PublishedPolicy, RegistryState};
use nova_policy::admission::Refusal;
use nova_policy::builtin;
use nova_policy::engine::Engine;
use nova_policy::loaded::LoadedPolicy;
use nova_stores::ports::registry::RegistryError;
pub use status::ServingStatus;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;
use tokio::sync::Notify;

/// Number of former policies that stay compiled for rollback. This is enough for two operators
/// who each change their mind.
pub(super) const WARM_POLICIES: usize = 3;

/// All policy data that a request needs, at one revision of the registry.
#[derive(Debug)]
pub struct Serving {
    pub state: RegistryState,
    pub active: Arc<LoadedPolicy>,
    /// Former policies, the most recent first. A rollback returns to `warm[0]`.
    pub warm: Vec<Arc<LoadedPolicy>>,
    pub canary: Option<CanaryShare>,
    /// Policies that rank the same requests as the active policy and serve no viewer.
    pub shadows: Vec<Arc<LoadedPolicy>>,
    /// Running experiments, highest priority first.
    pub experiments: Vec<RunningExperiment>,
    pub needs_attributes: bool,
}

impl Serving {
    /// Returns the active policy. Returns `None` if it is in quarantine and no former policy is
    /// left: then the native ranking serves.
    pub fn active_in_service(&self) -> Option<&Arc<LoadedPolicy>> {
        let quarantined = &self.state.quarantined;
        (!quarantined.contains_key(&self.active.effective_digest)).then_some(&self.active)
    }

    /// Reports if a policy that the state names could not be loaded.
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
    #[error("too many other uploads are being checked; nothing was changed, try again in a minute")]
    Busy,
    #[error("invalid")]
    Invalid(Vec<InvalidField>),
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
    /// The change is in the registry, but this host could not load it yet. It tries again every
    /// second.
    #[error("the change is recorded, but not yet in force on this host: {0:#}")]
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
    /// Share of the viewers, if the policy is a canary.
    pub percent: Option<f64>,
    /// False if this version was already published.
    pub new: bool,
}

/// Scope in which a change is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The change is in the registry, so it applies on every host.
    Everywhere,
    /// The change applies on this host only, until the registry answers.
    ThisHost,
}

#[derive(Debug)]
pub struct Deploy {
    engine: Engine,
    registry: Arc<dyn HostRegistry>,
    serving: ArcSwap<Serving>,
    compiled: CompiledModules,
    admissions: Admissions,
    bound: Mutex<HashMap<(PolicyRef, Digest), Weak<LoadedPolicy>>>,
    outcomes: Mutex<HashMap<Digest, Weak<Outcomes>>>,
    /// The bundled baseline policy. It is held here so that the last possible target of a
    /// rollback is always compiled.
    baseline: Arc<LoadedPolicy>,
    /// Lock that allows one change at a time.
    changing: tokio::sync::Mutex<()>,
    /// Lock held only while the pointer is swapped, never during a call to the registry, so that
    /// a quarantine does not wait for the registry.
    exchanging: tokio::sync::Mutex<()>,
    /// Quarantines decided on this host that the registry may not have yet.
    withdrawn: Mutex<BTreeMap<Digest, Quarantine>>,
    /// `unsettled` is true if something has to be written to the registry. `settle_soon` wakes
    /// the task that does it.
    unsettled: AtomicBool,
    settle_soon: Arc<Notify>,
    /// Background compiles.
    late: Late,
    /// Set while a policy that should serve is missing because it could not be loaded, in time
    /// or at all. Holds the time of the last swap that left it out.
    lacking_since: Mutex<Option<Instant>>,
    /// True once the bundled policies are in the registry.
    prepared: AtomicBool,
    /// True if the registry did not answer the last time this host asked it.
    away: AtomicBool,
    /// True on a development host, on which a policy with `follow = true` follows its sources.
    development: bool,
}

impl Deploy {
    /// Publishes the bundled policies, activates `baseline` if no policy was ever active, and
    /// loads the serving policies. While the registry does not answer, the policies that were
    /// last loaded from it serve, or else the built-in baseline. [`Deploy::follow_registry`]
    /// does the rest once the registry answers.
    ///
    /// # Errors
    /// Fails if a bundled policy is refused.
    pub async fn start(
        engine: Engine,
        registry: Arc<dyn HostRegistry>,
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

    /// Returns the one pointer that a request reads.
    pub fn serving(&self) -> arc_swap::Guard<Arc<Serving>> {
        self.serving.load()
    }

    pub fn registry(&self) -> &Arc<dyn HostRegistry> {
        &self.registry
    }

    pub fn is_development(&self) -> bool {
        self.development
    }

    /// Records a change and puts it in force. When this returns, the change applies on this
    /// host. While the registry does not answer, some kinds of changes are made on this host
    /// only.
    async fn carry_out(&self, change: Change, actor: &str) -> Result<Reach, DeployError> {
        let recorded = if self.makes_alone(&change) {
            // The registry call timed out a moment ago. An operator in an outage must not wait
            // for the same timeout again.
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
        // This host made its local changes on top of a state that the registry does not have.
        if self.is_ahead() {
            let waiting = anyhow::Error::from(Away)
                .context("local changes must be written to the registry first");
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
