//! Changes of experiments and cohorts.

use super::{Deploy, DeployError, Scope};
use crate::loader::LoadError;
use nova_model::experiments::cohort::Rule;
use nova_model::experiments::spec::{ExperimentSpec, ExperimentState, VariationSpec};
use nova_model::lifecycle::{in_service, variation_quarantine};
use nova_model::registry::{Change, Experiment, RegistryState};
use nova_policy::loaded::LoadedPolicy;
use std::sync::Arc;

impl Deploy {
    /// Creates or changes an experiment.
    ///
    /// # Errors
    /// Returns every field that is wrong. Returns a conflict if the experiment assigns viewers
    /// already and the change is more than a larger coverage.
    pub async fn put_experiment(
        &self,
        key: &str,
        spec: ExperimentSpec,
        actor: &str,
    ) -> Result<(Experiment, bool), DeployError> {
        let _loaded = self.load_variations(&spec).await;
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
            (ExperimentState::Running, Some(current)) if spec.coverage > current.spec.coverage => {
                self.refuse_downgrades(&serving.state, &spec)?;
            }
            _ => {}
        }
        let experiment = Experiment { spec, state };
        let change = Change::PutExperiment {
            key: key.to_owned(),
            experiment: experiment.clone(),
        };
        self.carry_out(change, actor).await?;
        Ok((experiment, current.is_none()))
    }

    /// Loads the policies of all variations before the lock on changes is taken. The caller
    /// holds them while it makes the change. Ignores errors, because the change itself reports
    /// them.
    async fn load_variations(&self, spec: &ExperimentSpec) -> Vec<Arc<LoadedPolicy>> {
        let state = self.serving().state.clone();
        let mut loaded = Vec::new();
        for variation in &spec.variations {
            let overrides = variation.params.clone().map(Into::into);
            let policy = self
                .loader
                .load(&state, &variation.policy, overrides.as_ref())
                .await;
            loaded.extend(policy.ok());
        }
        loaded
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
                .loader
                .load(state, &variation.policy, overrides.as_ref())
                .await
            {
                Ok(_) => {
                    let reason = out_of_service(state, variation);
                    errors.extend(reason.map(|r| (format!("variations[{at}].policy"), r)));
                }
                Err(LoadError::Refused(refusal)) => {
                    errors.extend(
                        refusal
                            .reasons
                            .into_iter()
                            .map(|reason| (format!("variations[{at}].params"), reason.message)),
                    );
                }
                Err(LoadError::NotFound(reason)) => {
                    errors.push((format!("variations[{at}].policy"), reason))
                }
                Err(other) => return Err(other.into()),
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(DeployError::Invalid(errors))
        }
    }

    /// Starts, pauses or stops an experiment. Does nothing if the experiment is in that state
    /// already. While the registry does not answer, an experiment can only be stopped, and it
    /// stops on this host only.
    ///
    /// # Errors
    /// Fails if there is no such experiment or if the step is not allowed.
    pub async fn set_experiment_state(
        &self,
        key: &str,
        next: ExperimentState,
        actor: &str,
    ) -> Result<(Experiment, Scope), DeployError> {
        let begun = self.serving().state.experiments.get(key).cloned();
        let _loaded = match begun.filter(|_| next == ExperimentState::Running) {
            Some(experiment) => self.load_variations(&experiment.spec).await,
            None => Vec::new(),
        };
        let _changing = self.begin_change().await;
        let serving = self.serving.load_full();
        let Some(current) = serving.state.experiments.get(key) else {
            return Err(DeployError::NotFound(format!(
                "there is no experiment `{key}`"
            )));
        };
        if current.state == next {
            return Ok((current.clone(), Scope::Everywhere));
        }
        if !current.state.may_become(next) {
            let (from, to) = (current.state.as_str(), next.as_str());
            return Err(DeployError::Conflict(format!(
                "experiment `{key}` is {from} and cannot become {to}"
            )));
        }
        let variations = &current.spec.variations;
        let unfit = variations
            .iter()
            .find_map(|v| out_of_service(&serving.state, v));
        if next == ExperimentState::Running
            && let Some(reason) = unfit
        {
            return Err(DeployError::Conflict(format!(
                "experiment `{key}` cannot run: {reason}"
            )));
        }
        if next == ExperimentState::Running {
            self.refuse_downgrades(&serving.state, &current.spec)?;
        }
        let experiment = Experiment {
            spec: current.spec.clone(),
            state: next,
        };
        let change = Change::PutExperiment {
            key: key.to_owned(),
            experiment: experiment.clone(),
        };
        let scope = self.carry_out(change, actor).await?;
        tracing::info!(
            experiment = key,
            state = next.as_str(),
            actor,
            "experiment changed"
        );
        Ok((experiment, scope))
    }

    /// Creates or replaces a cohort. Returns true if it is new.
    ///
    /// # Errors
    /// Fails if the rule is invalid.
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
                "the cohort `all` contains every viewer and cannot be changed; choose another key"
                    .into(),
            ));
        }
        let _changing = self.begin_change().await;
        let new = !self.serving().state.cohorts.contains_key(key);
        self.carry_out(
            Change::PutCohort {
                key: key.to_owned(),
                rule,
            },
            actor,
        )
        .await?;
        Ok(new)
    }
}

/// Returns the reason why a variation may not serve viewers, if there is one.
fn out_of_service(state: &RegistryState, variation: &VariationSpec) -> Option<String> {
    let refused = in_service(state, &variation.policy).err();
    refused.map(|refused| refused.to_string()).or_else(|| {
        let quarantine = variation_quarantine(state, variation)?;
        Some(format!(
            "{} with these parameters is quarantined ({})",
            variation.policy, quarantine.reason
        ))
    })
}
