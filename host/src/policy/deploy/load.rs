//! From the registry to what serves: policies compiled and bound, then the pointer exchanged.

use super::{Deploy, DeployError, Serving, WARM_POLICIES, require_published};
use crate::experiments::routing::RunningExperiment;
use crate::metrics::METRICS;
use crate::policy::admission::Refusal;
use crate::policy::artifact::{Digest, PerStage, PolicyRef};
use crate::policy::loaded::LoadedPolicy;
use crate::policy::module::Module;
use crate::policy::registry::RegistryState;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Deploy {
    /// Loads the registry and exchanges the pointer.
    pub(super) async fn refresh(&self) -> anyhow::Result<()> {
        let state = self.registry.load().await?;
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
