//! Loading of policies: fetches modules through the registry port, compiles them, checks
//! signatures and binds policies. The loader knows nothing of changes. A caller names a policy in
//! a state of the registry and says how long it waits ([`Wanted`]).
//!
//! The order of the locks is in `deploy/mod.rs`.

mod background;
mod compiled;
mod error;
mod known;
mod modules;
mod signature;

pub use background::BackgroundCompiles;
pub use error::LoadError;
pub use known::Tried;

use compiled::CompiledModules;
use modules::Modules;
use nova_model::artifact::{Digest, PerStage, PolicyRef, PolicySpec, Stage};
use nova_model::budget::Outcomes;
use nova_model::registry::{PublishedPolicy, RegistryState};
use nova_policy::admission::Refusal;
use nova_policy::builtin;
use nova_policy::engine::Engine;
use nova_policy::loaded::LoadedPolicy;
use nova_stores::ports::registry::Registry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// Parameter values that a variation of an experiment sets.
pub type Overrides = PerStage<BTreeMap<String, f64>>;

#[derive(Debug)]
pub struct Loader {
    modules: Modules,
    background: BackgroundCompiles,
    /// Policies in memory, by name and effective digest. They stay while a caller uses them.
    bound: Mutex<HashMap<(PolicyRef, Digest), Weak<LoadedPolicy>>>,
    /// Outcome windows by effective digest.
    outcomes: Mutex<HashMap<Digest, Weak<Outcomes>>>,
    /// The bundled baseline policy. It is held here so that the last possible target of a
    /// rollback is always compiled.
    baseline: Arc<LoadedPolicy>,
}

/// Selection of the policies that a caller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Waits for each policy for `each` and for all of them until `until`. A policy that takes
    /// longer is compiled in the background, and no call waits for a policy that is being
    /// compiled there.
    All { each: Duration, until: Instant },
    /// Waits for none, because the caller holds a lock that others wait for.
    InMemory,
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
            background: BackgroundCompiles::default(),
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

    pub fn background(&self) -> &BackgroundCompiles {
        &self.background
    }

    /// Returns a published policy with its modules compiled. Returns `None` if the policy is not
    /// in memory and only policies in memory are wanted, or if it is not loaded in time.
    ///
    /// # Errors
    /// The same as for [`Loader::load`].
    pub async fn wanted(
        &self,
        state: &RegistryState,
        policy: &PolicyRef,
        overrides: Option<&Overrides>,
        wanted: Wanted,
    ) -> Result<Option<Arc<LoadedPolicy>>, LoadError> {
        let published = require_published(state, policy)?;
        let Wanted::All { each, until } = wanted else {
            let spec = spec_of(published, overrides);
            return Ok(self.in_memory(&(policy.clone(), spec.digest())));
        };
        let stages = &published.spec.stages;
        let modules = Stage::ALL.map(|stage| stages.get(stage).module);
        if modules.iter().any(|module| self.background.has(*module)) {
            return Ok(None);
        }
        let load = self.load(state, policy, overrides);
        let until = until.min(Instant::now() + each);
        match tokio::time::timeout_at(until, load).await {
            Ok(loaded) => loaded.map(Some),
            Err(_) => {
                self.background.start(&self.modules, modules);
                Ok(None)
            }
        }
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
        let published = require_published(state, policy)?;
        let spec = spec_of(published, overrides);
        let key = (policy.clone(), spec.digest());
        if let Some(loaded) = self.in_memory(&key) {
            return Ok(loaded);
        }
        let modules = PerStage {
            dedup: self.modules.module(spec.stages.dedup.module).await?,
            score: self.modules.module(spec.stages.score.module).await?,
            saturation: self.modules.module(spec.stages.saturation.module).await?,
        };
        self.check_signature(published, &modules).await?;
        let mut loaded = LoadedPolicy::bind(published.digest, spec, modules)
            .map_err(|reasons| Refusal { reasons })?;
        loaded.outcomes = self.outcomes(loaded.effective_digest);
        let loaded = Arc::new(loaded);
        if let Ok(mut bound) = self.bound.lock() {
            bound.retain(|_, loaded| loaded.strong_count() > 0);
            bound.insert(key, Arc::downgrade(&loaded));
        }
        Ok(loaded)
    }

    fn in_memory(&self, key: &(PolicyRef, Digest)) -> Option<Arc<LoadedPolicy>> {
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
