//! Loading of policies: fetches modules through the registry port, compiles them, checks
//! signatures and binds policies. The loader knows nothing of changes. A caller names a policy in
//! a state of the registry, and either waits for it or takes it only if it is in memory.
//!
//! The order of the locks is in `deploy/mod.rs`.

mod background;
mod compiled;
mod error;
mod known;
mod modules;
mod signature;

pub use background::BackgroundLoads;
pub use error::LoadError;
pub use known::Tried;

use compiled::CompiledModules;
use modules::Modules;
use nova_model::artifact::{Digest, PerStage, PolicyRef, PolicySpec};
use nova_model::budget::Outcomes;
use nova_model::registry::{PublishedPolicy, RegistryState};
use nova_policy::admission::Refusal;
use nova_policy::builtin;
use nova_policy::engine::Engine;
use nova_policy::loaded::LoadedPolicy;
use nova_stores::ports::registry::Registry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, Weak};

/// Parameter values that a variation of an experiment sets.
pub type Overrides = PerStage<BTreeMap<String, f64>>;

#[derive(Debug)]
pub struct Loader {
    modules: Modules,
    background: BackgroundLoads,
    /// Policies in memory, by name and effective digest. They stay while a caller uses them.
    bound: Mutex<HashMap<Key, Weak<LoadedPolicy>>>,
    /// Outcome windows by effective digest.
    outcomes: Mutex<HashMap<Digest, Weak<Outcomes>>>,
    /// The bundled baseline policy. It is held here so that the last possible target of a
    /// rollback is always compiled.
    baseline: Arc<LoadedPolicy>,
}

/// A policy in memory: its name and its effective digest.
pub type Key = (PolicyRef, Digest);

/// A published policy that a state names, with the parameter values of a variation.
#[derive(Debug, Clone)]
pub struct Need {
    pub key: Key,
    spec: PolicySpec,
    /// The policy as it was published, without a variation's values.
    published: PublishedPolicy,
}

impl Need {
    /// # Errors
    /// Fails if the policy is not published.
    pub fn of(
        state: &RegistryState,
        policy: &PolicyRef,
        overrides: Option<&Overrides>,
    ) -> Result<Self, LoadError> {
        let published = require_published(state, policy)?.clone();
        let spec = spec_of(&published, overrides);
        Ok(Self {
            key: (policy.clone(), spec.digest()),
            spec,
            published,
        })
    }
}

impl Loader {
    /// Starts with the bundled baseline in memory.
    ///
    /// # Errors
    /// Fails if the baseline is refused.
    pub async fn start(engine: Engine, registry: Arc<dyn Registry>) -> anyhow::Result<Self> {
        let modules = Modules {
            engine,
            registry,
            compiled: CompiledModules::default(),
        };
        let baseline = builtin::recipes().next().unwrap_or_default();
        let baseline = known::admit_bundled(&modules, baseline).await?.loaded;
        Ok(Self {
            modules,
            background: BackgroundLoads::default(),
            bound: Mutex::default(),
            outcomes: Mutex::default(),
            baseline,
        })
    }

    pub fn engine(&self) -> &Engine {
        &self.modules.engine
    }

    pub fn baseline(&self) -> &Arc<LoadedPolicy> {
        &self.baseline
    }

    pub fn background(&self) -> &BackgroundLoads {
        &self.background
    }

    /// Returns a published policy with its modules compiled, from memory if it is there.
    ///
    /// # Errors
    /// Fails if the policy is not published, if the overrides do not fit it, or if the registry
    /// does not answer.
    pub async fn load(
        &self,
        state: &RegistryState,
        policy: &PolicyRef,
        overrides: Option<&Overrides>,
    ) -> Result<Arc<LoadedPolicy>, LoadError> {
        self.load_needed(&Need::of(state, policy, overrides)?).await
    }

    /// Does the same as [`Loader::load`].
    ///
    /// # Errors
    /// Fails if the overrides do not fit the policy, or if the registry does not answer.
    pub async fn load_needed(&self, need: &Need) -> Result<Arc<LoadedPolicy>, LoadError> {
        if let Some(loaded) = self.in_memory(&need.key) {
            return Ok(loaded);
        }
        let stages = &need.spec.stages;
        let (dedup, score, saturation) = tokio::join!(
            self.modules.module(stages.dedup.module),
            self.modules.module(stages.score.module),
            self.modules.module(stages.saturation.module),
        );
        let modules = PerStage {
            dedup: dedup?,
            score: score?,
            saturation: saturation?,
        };
        self.check_signature(&need.published, &modules).await?;
        let mut loaded = LoadedPolicy::bind(need.published.digest, need.spec.clone(), modules)
            .map_err(|reasons| Refusal { reasons })?;
        loaded.outcomes = self.outcomes(loaded.effective_digest);
        let loaded = Arc::new(loaded);
        if let Ok(mut bound) = self.bound.lock() {
            bound.retain(|_, loaded| loaded.strong_count() > 0);
            bound.insert(need.key.clone(), Arc::downgrade(&loaded));
        }
        Ok(loaded)
    }

    /// Returns a policy if it is in memory.
    pub fn in_memory(&self, key: &Key) -> Option<Arc<LoadedPolicy>> {
        self.bound.lock().ok()?.get(key)?.upgrade()
    }

    /// Returns the outcome window of an effective digest. Policies with equal behaviour share
    /// one window, even if they have different names.
    fn outcomes(&self, digest: Digest) -> Arc<Outcomes> {
        let Ok(mut outcomes) = self.outcomes.lock() else {
            return Arc::default();
        };
        if let Some(known) = outcomes.get(&digest).and_then(Weak::upgrade) {
            return known;
        }
        let new = Arc::default();
        outcomes.retain(|_, outcomes| outcomes.strong_count() > 0);
        outcomes.insert(digest, Arc::downgrade(&new));
        new
    }
}

/// Returns a policy of the state.
///
/// # Errors
/// Fails if the policy is not published.
pub fn require_published<'a>(
    state: &'a RegistryState,
    policy: &PolicyRef,
) -> Result<&'a PublishedPolicy, LoadError> {
    state.policy(policy).ok_or_else(|| {
        LoadError::NotFound(format!(
            "no policy {policy} is published; see: nova policy list"
        ))
    })
}

fn spec_of(published: &PublishedPolicy, overrides: Option<&Overrides>) -> PolicySpec {
    overrides.map_or_else(
        || published.spec.clone(),
        |values| published.spec.with_overrides(values),
    )
}
