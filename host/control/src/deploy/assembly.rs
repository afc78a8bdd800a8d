//! Assembly of what serves from a state of the registry: the policies that the state names and that
//! are in memory. The others are left out and returned as missing.

use super::serving::Serving;
use crate::loader::{Loader, Need, Overrides};
use crate::routing::{CanaryShare, RunningExperiment};
use nova_model::artifact::PolicyRef;
use nova_model::experiments::cohort::Rule;
use nova_model::experiments::spec::{ExperimentSpec, ExperimentState};
use nova_model::lifecycle::{WARM_POLICIES, rollback_targets};
use nova_model::registry::{Canary, RegistryState};
use nova_policy::loaded::LoadedPolicy;
use std::sync::Arc;

pub(super) struct Assembly<'a> {
    loader: &'a Loader,
    /// The state by which this host serves.
    state: &'a RegistryState,
    /// Policies that the state names and that are not in memory, the active one first.
    missing: Vec<Need>,
}

impl<'a> Assembly<'a> {
    /// Assembles what serves, and returns what is missing. `current` is the policy that is active
    /// now. It stays active until the state's active policy is loaded.
    pub fn assemble(
        loader: &'a Loader,
        state: &'a RegistryState,
        current: &Arc<LoadedPolicy>,
    ) -> (Serving, Vec<Need>) {
        let mut assembly = Self {
            loader,
            state,
            missing: Vec::new(),
        };
        let active = assembly.active().unwrap_or_else(|| current.clone());
        let warm = rollback_targets(state).take(WARM_POLICIES);
        let warm = warm
            .filter_map(|policy| assembly.policy(policy, None, "former"))
            .collect();
        let canary = assembly.canary();
        let shadows = state.shadows.iter();
        let shadows = shadows
            .filter_map(|policy| assembly.policy(policy, None, "shadow"))
            .collect();
        let experiments = assembly.experiments();
        let needs_attributes = experiments.iter().any(RunningExperiment::needs_attributes);
        let serving = Serving {
            warm,
            canary,
            shadows,
            experiments,
            needs_attributes,
            ..Serving::new(active)
        };
        (serving, assembly.missing)
    }

    fn active(&mut self) -> Option<Arc<LoadedPolicy>> {
        match self.state.activations.last() {
            None => Some(self.loader.baseline().clone()),
            Some(policy) => self.policy(policy, None, "active"),
        }
    }

    fn canary(&mut self) -> Option<CanaryShare> {
        let Canary { policy, percent } = self.state.canary.as_ref()?;
        Some(CanaryShare {
            policy: self.policy(policy, None, "canary")?,
            percent: *percent,
        })
    }

    fn experiments(&mut self) -> Vec<RunningExperiment> {
        let mut running = Vec::new();
        for (key, experiment) in &self.state.experiments {
            if experiment.state != ExperimentState::Running {
                continue;
            }
            let spec = &experiment.spec;
            let policies = self.variations(spec);
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
        running
    }

    fn variations(&mut self, spec: &ExperimentSpec) -> Vec<Arc<LoadedPolicy>> {
        let mut policies = Vec::new();
        for variation in &spec.variations {
            let overrides = variation.params.clone().map(Into::into);
            policies.extend(self.policy(&variation.policy, overrides.as_ref(), "variation"));
        }
        policies
    }

    /// Returns a policy if it is in memory, and notes it as missing if not.
    fn policy(
        &mut self,
        policy: &PolicyRef,
        overrides: Option<&Overrides>,
        role: &'static str,
    ) -> Option<Arc<LoadedPolicy>> {
        let need = match Need::of(self.state, policy, overrides) {
            Ok(need) => need,
            Err(error) => {
                tracing::error!(%policy, role, %error, "could not load a policy; serving without it");
                return None;
            }
        };
        let loaded = self.loader.in_memory(&need.key);
        if loaded.is_none() {
            self.missing.push(need);
        }
        loaded
    }
}
