//! Loading of the serving policies: compiles and binds the policies that the registry names,
//! then swaps the pointer that requests read.

use super::modules::Modules;
use super::{Deploy, DeployError, Serving, WARM_POLICIES, require_published};
use crate::routing::{CanaryShare, RunningExperiment};
use nova_model::artifact::{Digest, PerStage, PolicyRef, PolicySpec, Stage};
use nova_model::budget::Outcomes;
use nova_model::lifecycle::rollback_targets;
use nova_model::registry::{Canary, PublishedPolicy, RegistryState};
use nova_policy::admission::Refusal;
use nova_policy::loaded::LoadedPolicy;
use nova_support::metrics::METRICS;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::time::Instant as Deadline;

/// Time that a change waits for each policy that serves few or no viewers, and for all of them
/// together. Policies written in Rust compile in a tenth of this time.
const COMPILE_PATIENCE: Patience = Patience {
    each: Duration::from_secs(1),
    all: Duration::from_secs(3),
};
/// Limits at the start of a host. No change waits for a start, and the host should start with
/// all its policies.
const COMPILE_PATIENCE_AT_START: Patience = Patience {
    each: Duration::from_secs(10),
    all: Duration::from_secs(30),
};
/// Time after which a policy that should serve but could not be loaded is tried again. It is
/// tried earlier if a background compilation finishes.
const RETRY_WAIT: Duration = Duration::from_secs(60);

impl Deploy {
    /// Loads the registry's state and swaps the pointer.
    pub(super) async fn refresh(&self) -> anyhow::Result<()> {
        let state = self.registry.load().await?;
        self.serve(self.with_local_changes(state)).await
    }

    /// Swaps the pointer to the registry's state combined with what only this host knows.
    /// Fetches and compiles everything necessary before the swap. Waits without a limit for the
    /// active policy only. A policy that contains an interpreter compiles for half a minute, and
    /// a rollback that comes later must not wait for an experiment's policy.
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
        // The loaded policies are held here so that the exchange below finds them in memory.
        let held = self.build(state, wanted).await?;
        let _exchanging = self.exchanging.lock().await;
        self.note_unsettled(&recorded);
        self.exchange(recorded).await?;
        drop(held);
        Ok(())
    }

    /// Swaps the pointer. The caller holds the lock on exchanges. A policy that is not in memory
    /// is left out and tried again later.
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

    /// Returns the active policy of this state, or the policy that is active now if that one
    /// cannot be loaded.
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
            // A former policy that cannot be loaded now is no reason to keep serving an older
            // revision.
            match self.wanted(&state, policy, None, wanted).await {
                Ok(loaded) => warm.extend(loaded),
                Err(error) => {
                    tracing::error!(%policy, %error, "could not load a former policy; trying again later")
                }
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

    /// Returns a published policy with its modules compiled. Returns `None` if the policy is not
    /// in memory and only policies in memory are wanted, or if it is not loaded in time.
    ///
    /// # Errors
    /// The same as for [`Deploy::load`].
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

    /// Reports if the missing policies should be tried again, because a module was compiled
    /// since the last check or because [`RETRY_WAIT`] has passed.
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

    /// Returns a published policy with its modules compiled, from memory if it is there.
    ///
    /// # Errors
    /// Fails if the policy is not published, if the overrides do not fit it, or if the registry
    /// does not answer.
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

/// Selection of the policies that a caller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Waits for each policy for `each` and for all of them until `until`. A policy that takes
    /// longer is compiled in the background, and no call waits for a policy that is being
    /// compiled there.
    All { each: Duration, until: Deadline },
    /// Waits for none, because the caller holds a lock that others wait for.
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

/// Returns `None` for a policy that can never be loaded. Returns an error while the registry
/// does not answer, so that the old revision stays and the load is repeated.
pub(super) fn possible(
    loaded: Result<Option<Arc<LoadedPolicy>>, DeployError>,
    policy: &PolicyRef,
    role: &'static str,
) -> anyhow::Result<Option<Arc<LoadedPolicy>>> {
    match loaded {
        Ok(loaded) => Ok(loaded),
        Err(DeployError::Unavailable(error)) => Err(error),
        Err(error) => {
            tracing::error!(%policy, role, %error, "could not load a policy; serving without it, and trying again later");
            Ok(None)
        }
    }
}
