//! Assembly of what serves from a state of the registry: the policies that the state names,
//! loaded, or left out if they cannot be loaded.

use super::serving::Serving;
use crate::loader::{LoadError, Loader, Wanted};
use crate::routing::{CanaryShare, RunningExperiment};
use nova_model::artifact::PolicyRef;
use nova_model::experiments::cohort::Rule;
use nova_model::experiments::spec::{ExperimentSpec, ExperimentState};
use nova_model::lifecycle::{WARM_POLICIES, rollback_targets};
use nova_model::registry::{Canary, RegistryState};
use nova_policy::loaded::LoadedPolicy;
use std::sync::Arc;

pub(super) struct Assembly<'a> {
    pub loader: &'a Loader,
    pub wanted: Wanted,
    /// The state by which this host serves.
    pub state: &'a RegistryState,
}

impl Assembly<'_> {
    /// Assembles what serves. `current` is the policy that is active now. It stays active if the
    /// state's active policy cannot be loaded.
    ///
    /// # Errors
    /// Fails if the registry does not answer, so that the old revision stays.
    pub async fn assemble(self, current: &Arc<LoadedPolicy>) -> anyhow::Result<Serving> {
        let active = self.active().await?.unwrap_or_else(|| current.clone());
        let warm = self.warm().await;
        let canary = self.canary().await?;
        let shadows = self.shadows().await?;
        let experiments = self.experiments().await?;
        let needs_attributes = experiments.iter().any(RunningExperiment::needs_attributes);
        let mut serving = Serving {
            warm,
            canary,
            shadows,
            experiments,
            needs_attributes,
            ..Serving::new(active)
        };
        serving.is_incomplete = self.is_incomplete(&serving);
        Ok(serving)
    }

    /// Reports if a policy that the state names is missing, because it could not be loaded.
    fn is_incomplete(&self, serving: &Serving) -> bool {
        let state = self.state;
        let active = state.activations.last();
        let experiments = state.experiments.values();
        let running = experiments.filter(|experiment| experiment.state == ExperimentState::Running);
        active.is_some_and(|policy| *policy != serving.active.spec.policy)
            || serving.warm.len() < rollback_targets(state).take(WARM_POLICIES).count()
            || serving.canary.is_some() != state.canary.is_some()
            || serving.shadows.len() < state.shadows.len()
            || serving.experiments.len() < running.count()
    }

    async fn active(&self) -> anyhow::Result<Option<Arc<LoadedPolicy>>> {
        let Some(policy) = self.state.activations.last() else {
            return Ok(Some(self.loader.baseline().clone()));
        };
        let loaded = match self.wanted {
            Wanted::All { .. } => {
                let loaded = self.loader.load(self.state, policy, None).await;
                loaded.map(Some)
            }
            Wanted::InMemory => self.policy(policy).await,
        };
        possible(loaded, policy, "active")
    }

    async fn warm(&self) -> Vec<Arc<LoadedPolicy>> {
        let mut warm = Vec::new();
        for policy in rollback_targets(self.state).take(WARM_POLICIES) {
            // A former policy that cannot be loaded now is no reason to keep serving an older
            // revision.
            match self.policy(policy).await {
                Ok(loaded) => warm.extend(loaded),
                Err(error) => {
                    tracing::error!(%policy, %error, "could not load a former policy; trying again later")
                }
            }
        }
        warm
    }

    async fn canary(&self) -> anyhow::Result<Option<CanaryShare>> {
        let Some(Canary { policy, percent }) = &self.state.canary else {
            return Ok(None);
        };
        let loaded = possible(self.policy(policy).await, policy, "canary")?;
        Ok(loaded.map(|policy| CanaryShare {
            policy,
            percent: *percent,
        }))
    }

    async fn shadows(&self) -> anyhow::Result<Vec<Arc<LoadedPolicy>>> {
        let mut shadows = Vec::new();
        for policy in &self.state.shadows {
            shadows.extend(possible(self.policy(policy).await, policy, "shadow")?);
        }
        Ok(shadows)
    }

    async fn experiments(&self) -> anyhow::Result<Vec<RunningExperiment>> {
        let mut running = Vec::new();
        for (key, experiment) in &self.state.experiments {
            if experiment.state != ExperimentState::Running {
                continue;
            }
            let spec = &experiment.spec;
            let policies = self.variations(spec).await?;
            // An experiment that misses one of its variations is left out, because it would
            // assign viewers to the other variations only.
            if policies.len() < spec.variations.len() {
                continue;
            }
            let rule = self.state.cohorts.get(&spec.cohort).cloned();
            let rule = rule.unwrap_or_else(Rule::everybody);
            running.push(RunningExperiment::new(key, spec.clone(), rule, policies));
        }
        // The map is ordered by key and the sort is stable, so experiments of equal priority
        // stay in the order of their keys.
        running.sort_by_key(|experiment| std::cmp::Reverse(experiment.spec.priority));
        Ok(running)
    }

    async fn variations(&self, spec: &ExperimentSpec) -> anyhow::Result<Vec<Arc<LoadedPolicy>>> {
        let mut policies = Vec::new();
        for variation in &spec.variations {
            let (policy, overrides) = (&variation.policy, variation.params.clone().map(Into::into));
            let loaded = self
                .loader
                .wanted(self.state, policy, overrides.as_ref(), self.wanted)
                .await;
            policies.extend(possible(loaded, policy, "variation")?);
        }
        Ok(policies)
    }

    async fn policy(&self, policy: &PolicyRef) -> Result<Option<Arc<LoadedPolicy>>, LoadError> {
        self.loader
            .wanted(self.state, policy, None, self.wanted)
            .await
    }
}

/// Returns `None` for a policy that can never be loaded. Returns an error while the registry
/// does not answer, so that the old revision stays and the load is repeated.
fn possible(
    loaded: Result<Option<Arc<LoadedPolicy>>, LoadError>,
    policy: &PolicyRef,
    role: &'static str,
) -> anyhow::Result<Option<Arc<LoadedPolicy>>> {
    match loaded {
        Ok(loaded) => Ok(loaded),
        Err(LoadError::Unavailable(error)) => Err(error),
        Err(error) => {
            tracing::error!(%policy, role, %error, "could not load a policy; serving without it, and trying again later");
            Ok(None)
        }
    }
}
