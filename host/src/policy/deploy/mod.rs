//! What serves, and how it is changed. Readers take one pointer; changes are made one at a time,
//! first in the registry, then by exchanging that pointer.

mod alone;

use super::admission::{Admitted, KnownModules, PolicyFiles, Refusal, admit};
use super::artifact::{Digest, Manifest, ModuleSource, PerStage, PolicyRef, Stage};
use super::builtin;
use super::engine::Engine;
use super::last_good::Away;
use super::loaded::LoadedPolicy;
use super::local::Intent;
use super::module::Module;
use super::registry::{
    Change, Experiment, PublishedPolicy, Registry, RegistryError, RegistryState,
};
use crate::experiments::cohort::Rule;
use crate::experiments::routing::RunningExperiment;
use crate::experiments::spec::{ExperimentSpec, ExperimentState, FieldError};
use crate::metrics::METRICS;
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Former policies kept compiled for rollback. Two operators' worth of second thoughts.
pub(super) const WARM_POLICIES: usize = 3;
/// How often a host looks whether another process changed the registry.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Hosts that start at once on an empty registry get in each other's way a few times.
const PREPARE_ATTEMPTS: u32 = 16;

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
    pub reach: Reach,
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
    bound: Mutex<HashMap<(PolicyRef, Digest), Weak<LoadedPolicy>>>,
    /// Changes are made one at a time.
    changing: tokio::sync::Mutex<()>,
    /// Whether what this binary ships is in the registry.
    prepared: AtomicBool,
    /// A development host lets a policy that says so follow its sources.
    development: bool,
}

/// Compiled modules by digest, for as long as a loaded policy uses them.
#[derive(Debug, Default, Clone)]
struct CompiledModules(Arc<Mutex<HashMap<Digest, Weak<Module>>>>);

impl CompiledModules {
    fn get(&self, digest: Digest) -> Option<Arc<Module>> {
        self.0.lock().ok()?.get(&digest)?.upgrade()
    }

    fn keep(&self, module: &Arc<Module>) {
        if let Ok(mut modules) = self.0.lock() {
            modules.retain(|_, module| module.strong_count() > 0);
            modules.insert(module.digest, Arc::downgrade(module));
        }
    }
}

struct Known {
    compiled: CompiledModules,
    bytes: HashMap<Digest, Vec<u8>>,
}

impl KnownModules for Known {
    fn compiled(&self, digest: Digest) -> Option<Arc<Module>> {
        self.compiled.get(digest)
    }

    fn bytes(&self, digest: Digest) -> Option<Vec<u8>> {
        self.bytes.get(&digest).cloned()
    }
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
        let baseline = shipped(
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

    /// Brings the registry to where a host can serve by it. Another host that does the same at the
    /// same time does a part of the work.
    async fn prepare(&self) -> Result<(), DeployError> {
        for _ in 0..PREPARE_ATTEMPTS {
            match self.try_to_prepare().await {
                Err(DeployError::Conflict(_)) => {}
                other => return other,
            }
        }
        let busy = anyhow::anyhow!("other hosts keep changing the registry");
        Err(DeployError::Unavailable(busy))
    }

    async fn try_to_prepare(&self) -> Result<(), DeployError> {
        {
            let _changing = self.begin_change().await;
            self.refresh().await.map_err(DeployError::Unavailable)?;
        }
        self.publish_shipped().await?;
        if self.serving().state.activations.is_empty() {
            self.activate(&builtin::baseline(), "host").await?;
        }
        self.prepared.store(true, Ordering::Release);
        Ok(())
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

    /// Follows changes that other processes make, until the host ends.
    pub async fn follow_registry(self: Arc<Self>) {
        let mut failing = false;
        loop {
            tokio::select! {
                () = self.registry.changed() => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
            let looked = self.look().await;
            if let Err(error) = &looked
                && !failing
            {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the registry cannot be followed; serving what was last loaded"
                );
            }
            if failing && looked.is_ok() {
                tracing::info!("the registry answers again");
            }
            failing = looked.is_err();
        }
    }

    /// One look at the registry, and whatever follows from it.
    async fn look(&self) -> anyhow::Result<()> {
        let revision = self.registry.revision().await?;
        if !self.prepared.load(Ordering::Acquire) {
            return Ok(self.prepare().await?);
        }
        if revision == self.serving().state.revision && !self.is_ahead() {
            return Ok(());
        }
        let _changing = self.changing.lock().await;
        if self.is_ahead() {
            return self.settle_local_changes().await;
        }
        // Meanwhile this host's own change, of which this is the echo, may have been loaded.
        if revision == self.serving().state.revision {
            return Ok(());
        }
        self.refresh().await
    }

    async fn publish_shipped(&self) -> Result<(), DeployError> {
        for files in builtin::recipes() {
            let admitted = shipped(&self.engine, &self.compiled, files.clone())
                .await
                .map_err(|error| Refusal::one(format!("{error:#}")))?;
            let policy = admitted.loaded.spec.policy.clone();
            let published = self
                .serving()
                .state
                .policy(&policy)
                .map(|published| published.digest);
            match published {
                None => drop(self.publish(files, "host").await?),
                Some(digest) if digest == admitted.loaded.digest => {}
                Some(_) => {
                    tracing::info!(%policy, "this binary ships other bytes for a policy that is published already; the published ones stay")
                }
            }
        }
        Ok(())
    }

    /// Admits and publishes a policy. A version that is published already, with the same digest,
    /// is answered as it stands.
    ///
    /// # Errors
    /// Every reason for a refusal; a registry that does not answer.
    pub async fn publish(&self, files: PolicyFiles, actor: &str) -> Result<Published, DeployError> {
        let admitted = self.admit(files).await?;
        let _changing = self.begin_change().await;
        if admitted.follow {
            return self.follow_source(admitted, actor).await;
        }
        let loaded = &admitted.loaded;
        let policy = loaded.spec.policy.clone();
        let serving = self.serving.load_full();
        if let Some(published) = serving.state.policy(&policy) {
            return already_published(&serving, published, loaded.digest);
        }
        self.publish_admitted(&admitted, actor).await
    }

    /// Admission alone: what `publish` would say.
    ///
    /// # Errors
    /// As `publish`.
    pub async fn admit(&self, files: PolicyFiles) -> Result<Admitted, DeployError> {
        let known = Known {
            compiled: self.compiled.clone(),
            bytes: self.published_bytes(&files).await?,
        };
        let engine = self.engine.clone();
        let admitted = tokio::task::spawn_blocking(move || admit(&engine, &known, &files))
            .await
            .map_err(|_| {
                DeployError::Refused(Refusal::one("the compiler panicked on this policy"))
            })??;
        if admitted.follow && !self.development {
            let reason = "follow = true works only on a host started for development (nova demo, nova serve --watch)";
            return Err(Refusal::one(reason).into());
        }
        for stage in Stage::ALL {
            self.compiled.keep(admitted.loaded.modules.get(stage));
        }
        Ok(admitted)
    }

    async fn published_bytes(
        &self,
        files: &PolicyFiles,
    ) -> Result<HashMap<Digest, Vec<u8>>, DeployError> {
        let mut bytes = HashMap::new();
        // A manifest that cannot be read is admission's to refuse.
        let Ok(manifest) = Manifest::parse(&files.manifest) else {
            return Ok(bytes);
        };
        for stage in Stage::ALL {
            if let ModuleSource::Published(digest) = manifest.stage(stage).module
                && let Some(module) = self.registry.module(digest).await?
            {
                bytes.insert(digest, module);
            }
        }
        Ok(bytes)
    }

    async fn publish_admitted(
        &self,
        admitted: &Admitted,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let loaded = &admitted.loaded;
        let change = Change::Publish {
            spec: loaded.spec.clone(),
            digest: loaded.digest,
            modules: admitted.module_bytes.clone(),
        };
        self.carry_out(&change, actor).await?;
        let policy = loaded.spec.policy.clone();
        tracing::info!(%policy, digest = %loaded.digest, actor, "policy published");
        Ok(Published {
            policy,
            digest: loaded.digest,
            state: PolicyState::Published,
            new: true,
            reach: Reach::Everywhere,
        })
    }

    /// Development: the next free `-dev.N` version of a changed policy, active at once.
    async fn follow_source(
        &self,
        admitted: Admitted,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let serving = self.serving.load_full();
        let digest = admitted.loaded.digest;
        let PolicyRef { name, version } = admitted.loaded.spec.policy.clone();
        if serving.active.digest == digest && serving.active.spec.policy.name == name {
            return Ok(Published {
                policy: serving.active.spec.policy.clone(),
                digest,
                state: PolicyState::Active,
                new: false,
                reach: Reach::Everywhere,
            });
        }
        let taken = |n: usize| {
            dev_version(&version, n).is_none_or(|version| {
                serving
                    .state
                    .policy(&PolicyRef {
                        name: name.clone(),
                        version,
                    })
                    .is_some()
            })
        };
        let next = (1..=serving.state.policies.len() + 1)
            .find(|&n| !taken(n))
            .and_then(|n| dev_version(&version, n));
        let Some(version) = next else {
            return Err(
                Refusal::one(format!("version {version} cannot carry a -dev.N suffix")).into(),
            );
        };
        let mut spec = admitted.loaded.spec.clone();
        spec.policy.version = version;
        let loaded = LoadedPolicy::bind(digest, spec, admitted.loaded.modules.clone())
            .map_err(|reasons| Refusal { reasons })?;
        let admitted = Admitted {
            loaded: Arc::new(loaded),
            ..admitted
        };
        let published = self.publish_admitted(&admitted, actor).await?;
        self.activate_locked(&published.policy, actor).await?;
        Ok(Published {
            state: PolicyState::Active,
            ..published
        })
    }

    /// Makes a published policy the active one.
    ///
    /// # Errors
    /// When it is not published, cannot be loaded, or the registry does not answer.
    pub async fn activate(
        &self,
        policy: &PolicyRef,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let _changing = self.begin_change().await;
        self.activate_locked(policy, actor).await
    }

    async fn activate_locked(
        &self,
        policy: &PolicyRef,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let serving = self.serving.load_full();
        let digest = require_published(&serving.state, policy)?.digest;
        let done = Published {
            policy: policy.clone(),
            digest,
            state: PolicyState::Active,
            new: false,
            reach: Reach::Everywhere,
        };
        let recorded = serving.state.activations.last() == Some(policy);
        if recorded && serving.active.spec.policy == *policy {
            return Ok(done);
        }
        // Loaded before it is recorded: what cannot run must not become the truth.
        let loaded = self.load(&serving.state, policy, None).await?;
        self.carry_out(
            &Change::Activate {
                policy: policy.clone(),
            },
            actor,
        )
        .await?;
        drop(loaded);
        METRICS
            .policy_swaps_total
            .with_label_values(&["activate"])
            .inc();
        tracing::info!(%policy, %digest, actor, "policy activated");
        Ok(done)
    }

    /// Returns to what was active before.
    ///
    /// # Errors
    /// A conflict when another policy is active than the caller expected, or nothing was active before.
    pub async fn rollback(
        &self,
        reason: &str,
        expected_active: Option<&PolicyRef>,
        actor: &str,
    ) -> Result<Published, DeployError> {
        let _changing = self.begin_change().await;
        let serving = self.serving.load_full();
        let Some((active, former)) = serving.state.activations.split_last() else {
            return Err(DeployError::Conflict("nothing was ever activated".into()));
        };
        if let Some(expected) = expected_active
            && expected != active
        {
            return Err(DeployError::Conflict(format!(
                "{active} is active, not {expected}; nothing was changed"
            )));
        }
        let Some(to) = former.last() else {
            return Err(DeployError::Conflict(format!(
                "{active} was the first; there is nothing to go back to"
            )));
        };
        // Loaded before it is recorded, as for an activation.
        let loaded = self.load(&serving.state, to, None).await?;
        let change = Change::Rollback {
            from: active.clone(),
            to: to.clone(),
            reason: reason.to_owned(),
        };
        let intent = Intent::Rollback {
            from: active.clone(),
            to: to.clone(),
            reason: reason.to_owned(),
        };
        let reach = self.carry_out_or_keep(change, intent, actor).await?;
        drop(loaded);
        METRICS
            .policy_swaps_total
            .with_label_values(&["rollback"])
            .inc();
        tracing::warn!(from = %active, %to, actor, reason, "policy rolled back");
        Ok(Published {
            policy: to.clone(),
            digest: require_published(&serving.state, to)?.digest,
            state: PolicyState::Active,
            new: false,
            reach,
        })
    }

    /// Creates or changes an experiment.
    ///
    /// # Errors
    /// Every field that is wrong; a conflict when viewers are being assigned and more than coverage changes.
    pub async fn put_experiment(
        &self,
        key: &str,
        spec: ExperimentSpec,
        actor: &str,
    ) -> Result<(Experiment, bool), DeployError> {
        let _changing = self.begin_change().await;
        let serving = self.serving.load_full();
        self.check_experiment(&serving.state, &spec).await?;
        let current = serving.state.experiments.get(key);
        let state = current.map_or(ExperimentState::Draft, |experiment| experiment.state);
        match (state, current) {
            (ExperimentState::Stopped, _) => {
                return Err(DeployError::Conflict(format!(
                    "experiment `{key}` is stopped; choose another key"
                )));
            }
            (ExperimentState::Running | ExperimentState::Paused, Some(current))
                if !spec.only_grows(&current.spec) =>
            {
                return Err(DeployError::Conflict(format!(
                    "experiment `{key}` is {}: only its coverage may change, and only grow",
                    state.as_str()
                )));
            }
            _ => {}
        }
        let experiment = Experiment { spec, state };
        let change = Change::PutExperiment {
            key: key.to_owned(),
            experiment: experiment.clone(),
        };
        self.carry_out(&change, actor).await?;
        Ok((experiment, current.is_none()))
    }

    async fn check_experiment(
        &self,
        state: &RegistryState,
        spec: &ExperimentSpec,
    ) -> Result<(), DeployError> {
        let mut errors = spec.check();
        if spec.cohort != "all" && !state.cohorts.contains_key(&spec.cohort) {
            errors.push((
                "cohort".into(),
                format!("there is no cohort `{}`", spec.cohort),
            ));
        }
        for (at, variation) in spec.variations.iter().enumerate() {
            let overrides = variation.params.clone().map(Into::into);
            match self
                .load(state, &variation.policy, overrides.as_ref())
                .await
            {
                Ok(_) => {}
                Err(DeployError::Refused(refusal)) => {
                    errors.extend(
                        refusal
                            .reasons
                            .into_iter()
                            .map(|reason| (format!("variations[{at}].params"), reason)),
                    );
                }
                Err(DeployError::NotFound(reason)) => {
                    errors.push((format!("variations[{at}].policy"), reason))
                }
                Err(other) => return Err(other),
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(DeployError::Invalid(errors))
        }
    }

    /// Starts, pauses or stops an experiment. What is already so stays so.
    ///
    /// # Errors
    /// When there is no such experiment or the step is not allowed.
    pub async fn set_experiment_state(
        &self,
        key: &str,
        next: ExperimentState,
        actor: &str,
    ) -> Result<(Experiment, Reach), DeployError> {
        let _changing = self.begin_change().await;
        let serving = self.serving.load_full();
        let Some(current) = serving.state.experiments.get(key) else {
            return Err(DeployError::NotFound(format!(
                "there is no experiment `{key}`"
            )));
        };
        if current.state == next {
            return Ok((current.clone(), Reach::Everywhere));
        }
        if !current.state.may_become(next) {
            let (from, to) = (current.state.as_str(), next.as_str());
            return Err(DeployError::Conflict(format!(
                "experiment `{key}` is {from} and cannot become {to}"
            )));
        }
        let experiment = Experiment {
            spec: current.spec.clone(),
            state: next,
        };
        let change = Change::PutExperiment {
            key: key.to_owned(),
            experiment: experiment.clone(),
        };
        let reach = if next == ExperimentState::Stopped {
            let key = key.to_owned();
            let intent = Intent::StopExperiment { key };
            self.carry_out_or_keep(change, intent, actor).await?
        } else {
            self.carry_out(&change, actor).await?;
            Reach::Everywhere
        };
        tracing::info!(
            experiment = key,
            state = next.as_str(),
            actor,
            "experiment changed"
        );
        Ok((experiment, reach))
    }

    /// # Errors
    /// When the rule means nothing.
    pub async fn put_cohort(
        &self,
        key: &str,
        rule: Rule,
        actor: &str,
    ) -> Result<bool, DeployError> {
        rule.check()
            .map_err(|reason| DeployError::Invalid(vec![("rule".into(), reason)]))?;
        if key == "all" {
            return Err(DeployError::Conflict(
                "the cohort `all` is everybody and stays so".into(),
            ));
        }
        let _changing = self.begin_change().await;
        let new = !self.serving().state.cohorts.contains_key(key);
        self.carry_out(
            &Change::PutCohort {
                key: key.to_owned(),
                rule,
            },
            actor,
        )
        .await?;
        Ok(new)
    }

    /// # Errors
    /// When the registry does not answer.
    pub async fn set_flag(
        &self,
        name: &str,
        enabled: bool,
        actor: &str,
    ) -> Result<(), DeployError> {
        let _changing = self.begin_change().await;
        self.carry_out(
            &Change::SetFlag {
                name: name.to_owned(),
                enabled,
            },
            actor,
        )
        .await
    }

    /// Records a change and serves by it. When this returns, this host does.
    async fn carry_out(&self, change: &Change, actor: &str) -> Result<(), DeployError> {
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

    /// Loads the registry and exchanges the pointer.
    async fn refresh(&self) -> anyhow::Result<()> {
        let state = self.registry.load().await?;
        self.serve(self.with_local_changes(state)).await
    }

    /// Exchanges the pointer for one to what `state` says.
    async fn serve(&self, state: RegistryState) -> anyhow::Result<()> {
        let before = self.serving.load_full();
        let active = match state.activations.last() {
            None => before.active.clone(),
            Some(policy) => match self.load(&state, policy, None).await {
                Ok(loaded) => loaded,
                // The registry will answer again: the old revision stays, so that this is repeated.
                Err(DeployError::Unavailable(error)) => return Err(error),
                Err(error) => {
                    tracing::error!(%policy, %error, "the active policy cannot be loaded; the one before keeps serving");
                    before.active.clone()
                }
            },
        };
        let mut warm = Vec::new();
        for policy in state.activations.iter().rev().skip(1).take(WARM_POLICIES) {
            match self.load(&state, policy, None).await {
                Ok(loaded) => warm.push(loaded),
                Err(error) => tracing::error!(%policy, %error, "a former policy cannot be loaded"),
            }
        }
        let experiments = self.running_experiments(&state).await?;
        let needs_attributes = experiments.iter().any(RunningExperiment::needs_attributes);
        self.serving.store(Arc::new(Serving {
            state,
            active,
            warm,
            experiments,
            needs_attributes,
        }));
        self.show_active();
        Ok(())
    }

    fn show_active(&self) {
        let active = &self.serving().active;
        METRICS.set_active_policy(&active.spec.policy, active.digest);
    }

    async fn running_experiments(
        &self,
        state: &RegistryState,
    ) -> anyhow::Result<Vec<RunningExperiment>> {
        let mut running = Vec::new();
        for (key, experiment) in &state.experiments {
            if experiment.state != ExperimentState::Running {
                continue;
            }
            let mut policies = Vec::new();
            for variation in &experiment.spec.variations {
                let overrides = variation.params.clone().map(Into::into);
                match self
                    .load(state, &variation.policy, overrides.as_ref())
                    .await
                {
                    Ok(policy) => policies.push(policy),
                    Err(DeployError::Unavailable(error)) => return Err(error),
                    Err(error) => {
                        tracing::error!(experiment = key, policy = %variation.policy, %error, "a variation cannot be loaded; its experiment assigns nobody");
                    }
                }
            }
            if policies.len() < experiment.spec.variations.len() {
                continue;
            }
            let rule = state
                .cohorts
                .get(&experiment.spec.cohort)
                .cloned()
                .unwrap_or_else(Rule::everybody);
            running.push(RunningExperiment::new(
                key,
                experiment.spec.clone(),
                rule,
                policies,
            ));
        }
        // The map was in the order of keys and the sort is stable, so equal priorities go by key.
        running.sort_by_key(|experiment| std::cmp::Reverse(experiment.spec.priority));
        Ok(running)
    }

    /// A published policy with its modules compiled; from memory when it is there.
    ///
    /// # Errors
    /// When it is not published, the overrides do not fit it, or the registry does not answer.
    pub async fn load(
        &self,
        state: &RegistryState,
        policy: &PolicyRef,
        overrides: Option<&PerStage<BTreeMap<String, f64>>>,
    ) -> Result<Arc<LoadedPolicy>, DeployError> {
        let published = require_published(state, policy)?;
        let spec = overrides.map_or_else(
            || published.spec.clone(),
            |values| published.spec.with_overrides(values),
        );
        let key = (policy.clone(), spec.digest());
        if let Some(loaded) = self
            .bound
            .lock()
            .ok()
            .and_then(|bound| bound.get(&key)?.upgrade())
        {
            return Ok(loaded);
        }
        let modules = PerStage {
            dedup: self.module(spec.stages.dedup.module).await?,
            score: self.module(spec.stages.score.module).await?,
            saturation: self.module(spec.stages.saturation.module).await?,
        };
        let loaded = LoadedPolicy::bind(published.digest, spec, modules)
            .map_err(|reasons| Refusal { reasons })?;
        let loaded = Arc::new(loaded);
        if let Ok(mut bound) = self.bound.lock() {
            bound.retain(|_, loaded| loaded.strong_count() > 0);
            bound.insert(key, Arc::downgrade(&loaded));
        }
        Ok(loaded)
    }

    async fn module(&self, digest: Digest) -> Result<Arc<Module>, DeployError> {
        if let Some(module) = self.compiled.get(digest) {
            return Ok(module);
        }
        let bytes = self.registry.module(digest).await?;
        let bytes = bytes
            .ok_or_else(|| DeployError::NotFound(format!("the registry has no module {digest}")))?;
        let engine = self.engine.clone();
        let module = tokio::task::spawn_blocking(move || engine.load(&bytes))
            .await
            .map_err(|error| DeployError::Unavailable(error.into()))?
            .map_err(|error| DeployError::Refused(Refusal::one(error.to_string())))?;
        let module = Arc::new(module);
        self.compiled.keep(&module);
        Ok(module)
    }
}

fn dev_version(version: &semver::Version, n: usize) -> Option<semver::Version> {
    let pre = semver::Prerelease::new(&format!("dev.{n}")).ok()?;
    Some(semver::Version {
        pre,
        ..version.clone()
    })
}

fn require_published<'a>(
    state: &'a RegistryState,
    policy: &PolicyRef,
) -> Result<&'a PublishedPolicy, DeployError> {
    state
        .policy(policy)
        .ok_or_else(|| DeployError::NotFound(format!("no policy {policy} is published")))
}

fn already_published(
    serving: &Serving,
    published: &PublishedPolicy,
    digest: Digest,
) -> Result<Published, DeployError> {
    let policy = published.spec.policy.clone();
    if published.digest != digest {
        let reason = format!(
            "{policy} is published with other content; a published version never changes, choose a new one"
        );
        return Err(Refusal::one(reason).into());
    }
    let active = serving.state.activations.last() == Some(&policy);
    let state = if active {
        PolicyState::Active
    } else {
        PolicyState::Published
    };
    Ok(Published {
        policy,
        digest,
        state,
        new: false,
        reach: Reach::Everywhere,
    })
}

/// A recipe of this binary, admitted.
async fn shipped(
    engine: &Engine,
    compiled: &CompiledModules,
    files: PolicyFiles,
) -> anyhow::Result<Admitted> {
    let (engine, compiled) = (engine.clone(), compiled.clone());
    let admitted = tokio::task::spawn_blocking(move || {
        let known = Known {
            compiled: compiled.clone(),
            bytes: HashMap::new(),
        };
        let admitted = admit(&engine, &known, &files)?;
        for stage in Stage::ALL {
            compiled.keep(admitted.loaded.modules.get(stage));
        }
        Ok::<_, Refusal>(admitted)
    });
    Ok(admitted.await??)
}
