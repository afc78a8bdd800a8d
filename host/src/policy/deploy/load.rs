//! From the registry to what serves: policies compiled and bound, then the pointer exchanged.

use super::modules::Modules;
use super::{Deploy, DeployError, Serving, WARM_POLICIES, require_published};
use crate::experiments::routing::{CanaryShare, RunningExperiment};
use crate::metrics::METRICS;
use crate::policy::admission::Refusal;
use crate::policy::artifact::{Digest, PerStage, PolicyRef, PolicySpec, Stage};
use crate::policy::budget::Outcomes;
use crate::policy::lifecycle::rollback_targets;
use crate::policy::loaded::LoadedPolicy;
use crate::policy::registry::{Canary, PublishedPolicy, RegistryState};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::time::Instant as Deadline;

/// How long a change of what serves waits for a policy that few viewers get or none, and for all of them. Policies written in
/// Rust compile in a tenth of it.
const COMPILE_PATIENCE: Patience = Patience {
    each: Duration::from_secs(1),
    all: Duration::from_secs(3),
};
/// At the start of a host nobody waits, and what it begins with should be whole.
const COMPILE_PATIENCE_AT_START: Patience = Patience {
    each: Duration::from_secs(10),
    all: Duration::from_secs(30),
};
/// What should serve and could not be had is tried again after this; sooner when a compilation that it waited for is done.
const RETRY_WAIT: Duration = Duration::from_secs(60);

impl Deploy {
    /// Loads the registry and exchanges the pointer.
    pub(super) async fn refresh(&self) -> anyhow::Result<()> {
        let state = self.registry.load().await?;
        self.serve(self.with_local_changes(state)).await
    }

    /// Exchanges the pointer for one to what the registry says and this host knows better. Whatever must be fetched and
    /// compiled is before that. Only the active policy is waited for as long as it takes: a policy with an interpreter
    /// in it compiles for half a minute, and a rollback that comes after it must not wait for somebody's experiment.
    pub(super) async fn serve(&self, recorded: RegistryState) -> anyhow::Result<()> {
        let state = self.with_withdrawn(recorded.clone());
        let _active = self.load_active(&state).await;
        let patience = match self.prepared.load(Ordering::Acquire) {
            true => COMPILE_PATIENCE,
            false => COMPILE_PATIENCE_AT_START,
        };
        let wanted = Wanted::All {
            each: patience.each,
            until: Deadline::now() + patience.all,
        };
        // Held, so that what is exchanged below finds it in memory.
        let held = self.build(state, wanted).await?;
        let _exchanging = self.exchanging.lock().await;
        self.note_unsettled(&recorded);
        self.exchange(recorded).await?;
        drop(held);
        Ok(())
    }

    /// Under the lock of whoever exchanges. What is not in memory is left out, and tried again later.
    pub(super) async fn exchange(&self, state: RegistryState) -> anyhow::Result<()> {
        let serving = self
            .build(self.with_withdrawn(state), Wanted::InMemory)
            .await?;
        let lacks = serving.lacks_something();
        *self.lacking_since() = lacks.then(Instant::now);
        let quarantined = i64::try_from(serving.state.quarantined.len()).unwrap_or(i64::MAX);
        METRICS.policy_quarantined.set(quarantined);
        self.serving.store(Arc::new(serving));
        self.show_active();
        Ok(())
    }

    /// The former one where it cannot be had.
    async fn active_of(
        &self,
        state: &RegistryState,
        wanted: Wanted,
    ) -> anyhow::Result<Arc<LoadedPolicy>> {
        let Some(policy) = state.activations.last() else {
            return Ok(self.baseline.clone());
        };
        let loaded = match wanted {
            Wanted::All { .. } => self.load(state, policy, None).await.map(Some),
            Wanted::InMemory => self.wanted(state, policy, None, wanted).await,
        };
        Ok(possible(loaded, policy, "active")?.unwrap_or_else(|| self.serving().active.clone()))
    }

    async fn build(&self, state: RegistryState, wanted: Wanted) -> anyhow::Result<Serving> {
        let active = self.active_of(&state, wanted).await?;
        let mut warm = Vec::new();
        for policy in rollback_targets(&state).take(WARM_POLICIES) {
            // A former policy that cannot be had right now is no reason to keep an older revision.
            match self.wanted(&state, policy, None, wanted).await {
                Ok(loaded) => warm.extend(loaded),
                Err(error) => tracing::error!(%policy, %error, "a former policy cannot be loaded"),
            }
        }
        let canary = match &state.canary {
            None => None,
            Some(Canary { policy, percent }) => {
                let loaded = self.wanted(&state, policy, None, wanted).await;
                possible(loaded, policy, "canary")?.map(|policy| CanaryShare {
                    policy,
                    percent: *percent,
                })
            }
        };
        let mut shadows = Vec::new();
        for policy in &state.shadows {
            let loaded = self.wanted(&state, policy, None, wanted).await;
            shadows.extend(possible(loaded, policy, "shadow")?);
        }
        let experiments = self.running_experiments(&state, wanted).await?;
        let needs_attributes = experiments.iter().any(RunningExperiment::needs_attributes);
        Ok(Serving {
            state,
            active,
            warm,
            canary,
            shadows,
            experiments,
            needs_attributes,
        })
    }

    /// A published policy with its modules compiled; `None` when it is not in memory and only that is wanted.
    ///
    /// # Errors
    /// As [`Deploy::load`].
    pub(super) async fn wanted(
        &self,
        state: &RegistryState,
        policy: &PolicyRef,
        overrides: Option<&PerStage<BTreeMap<String, f64>>>,
        wanted: Wanted,
    ) -> Result<Option<Arc<LoadedPolicy>>, DeployError> {
        match wanted {
            Wanted::All { each, until } => {
                let stages = &require_published(state, policy)?.spec.stages;
                let modules = Stage::ALL.map(|stage| stages.get(stage).module);
                if modules.iter().any(|module| self.late.has(*module)) {
                    return Ok(None);
                }
                let load = self.load(state, policy, overrides);
                let until = until.min(Deadline::now() + each);
                match tokio::time::timeout_at(until, load).await {
                    Ok(loaded) => loaded.map(Some),
                    Err(_) => {
                        let soon = self.settle_soon.clone();
                        self.late.load(&self.modules(), modules, soon);
                        Ok(None)
                    }
                }
            }
            Wanted::InMemory => {
                let spec = spec_of(require_published(state, policy)?, overrides);
                Ok(self.in_memory(&(policy.clone(), spec.digest())))
            }
        }
    }

    /// Whether what should serve and does not is to be tried again: something was compiled, or it is a while since.
    pub(super) fn is_retry_due(&self) -> bool {
        let since = *self.lacking_since();
        let is_old = since.is_some_and(|since| since.elapsed() >= RETRY_WAIT);
        self.late.take_news() || is_old && !self.late.is_under_way()
    }

    fn lacking_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.lacking_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn show_active(&self) {
        let active = &self.serving().active;
        METRICS.set_active_policy(&active.spec.policy, active.digest);
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
        let spec = spec_of(published, overrides);
        let key = (policy.clone(), spec.digest());
        if let Some(loaded) = self.in_memory(&key) {
            return Ok(loaded);
        }
        let from = self.modules();
        let modules = PerStage {
            dedup: from.module(spec.stages.dedup.module).await?,
            score: from.module(spec.stages.score.module).await?,
            saturation: from.module(spec.stages.saturation.module).await?,
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

    /// Equal behaviour has one window, under whatever names it runs.
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

    fn in_memory(&self, key: &(PolicyRef, Digest)) -> Option<Arc<LoadedPolicy>> {
        self.bound.lock().ok()?.get(key)?.upgrade()
    }

    fn modules(&self) -> Modules {
        Modules {
            engine: self.engine.clone(),
            registry: self.registry.clone(),
            compiled: self.compiled.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Patience {
    each: Duration,
    all: Duration,
}

/// Which policies are worth waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Each for so long and all until then, but not those that are compiled in the background: and that is what becomes of those
    /// that take longer.
    All { each: Duration, until: Deadline },
    /// None: whoever asks holds up others.
    InMemory,
}

fn spec_of(
    published: &PublishedPolicy,
    overrides: Option<&PerStage<BTreeMap<String, f64>>>,
) -> PolicySpec {
    overrides.map_or_else(
        || published.spec.clone(),
        |values| published.spec.with_overrides(values),
    )
}

/// `None` for a policy that will never load; an error while the registry does not answer, so that the
/// old revision stays and this is repeated.
pub(super) fn possible(
    loaded: Result<Option<Arc<LoadedPolicy>>, DeployError>,
    policy: &PolicyRef,
    role: &'static str,
) -> anyhow::Result<Option<Arc<LoadedPolicy>>> {
    match loaded {
        Ok(loaded) => Ok(loaded),
        Err(DeployError::Unavailable(error)) => Err(error),
        Err(error) => {
            tracing::error!(%policy, role, %error, "a policy cannot be loaded; what served before goes on");
            Ok(None)
        }
    }
}
