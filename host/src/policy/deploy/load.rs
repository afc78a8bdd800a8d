//! From the registry to what serves: policies compiled and bound, then the pointer exchanged.

use super::{Deploy, DeployError, Serving, WARM_POLICIES, require_published};
use crate::experiments::routing::{CanaryShare, RunningExperiment};
use crate::metrics::METRICS;
use crate::policy::admission::Refusal;
use crate::policy::artifact::{Digest, PerStage, PolicyRef};
use crate::policy::budget::Outcomes;
use crate::policy::lifecycle::rollback_targets;
use crate::policy::loaded::LoadedPolicy;
use crate::policy::module::Module;
use crate::policy::registry::{Canary, RegistryState};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

impl Deploy {
    /// Loads the registry and exchanges the pointer.
    pub(super) async fn refresh(&self) -> anyhow::Result<()> {
        let state = self.registry.load().await?;
        self.serve(state).await
    }

    /// Exchanges the pointer for one to what the registry says and this host knows better.
    pub(super) async fn serve(&self, recorded: RegistryState) -> anyhow::Result<()> {
        // Whatever must be fetched and compiled is, before anybody has to wait for the exchange.
        let _compiled = self.build(self.with_withdrawn(recorded.clone())).await?;
        let _exchanging = self.exchanging.lock().await;
        self.note_unsettled(&recorded);
        self.exchange(recorded).await
    }

    /// Under the lock of whoever exchanges.
    pub(super) async fn exchange(&self, state: RegistryState) -> anyhow::Result<()> {
        let serving = self.build(self.with_withdrawn(state)).await?;
        let quarantined = i64::try_from(serving.state.quarantined.len()).unwrap_or(i64::MAX);
        METRICS.policy_quarantined.set(quarantined);
        self.serving.store(Arc::new(serving));
        self.show_active();
        Ok(())
    }

    async fn build(&self, state: RegistryState) -> anyhow::Result<Serving> {
        let active = match state.activations.last() {
            None => self.baseline.clone(),
            Some(policy) => match self.load_if_possible(&state, policy, "active").await? {
                Some(loaded) => loaded,
                None => self.serving().active.clone(),
            },
        };
        let mut warm = Vec::new();
        for policy in rollback_targets(&state).take(WARM_POLICIES) {
            // A former policy that cannot be had right now is no reason to keep an older revision.
            match self.load(&state, policy, None).await {
                Ok(loaded) => warm.push(loaded),
                Err(error) => tracing::error!(%policy, %error, "a former policy cannot be loaded"),
            }
        }
        let canary = match &state.canary {
            None => None,
            Some(Canary { policy, percent }) => self
                .load_if_possible(&state, policy, "canary")
                .await?
                .map(|policy| CanaryShare {
                    policy,
                    percent: *percent,
                }),
        };
        let mut shadows = Vec::new();
        for policy in &state.shadows {
            shadows.extend(self.load_if_possible(&state, policy, "shadow").await?);
        }
        let experiments = self.running_experiments(&state).await?;
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

    /// `None` for a policy that will never load; an error while the registry does not answer, so that the
    /// old revision stays and this is repeated.
    async fn load_if_possible(
        &self,
        state: &RegistryState,
        policy: &PolicyRef,
        role: &'static str,
    ) -> anyhow::Result<Option<Arc<LoadedPolicy>>> {
        match self.load(state, policy, None).await {
            Ok(loaded) => Ok(Some(loaded)),
            Err(DeployError::Unavailable(error)) => Err(error),
            Err(error) => {
                tracing::error!(%policy, role, %error, "a policy cannot be loaded; what served before goes on");
                Ok(None)
            }
        }
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
