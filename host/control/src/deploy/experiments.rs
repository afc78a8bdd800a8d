//! Changes of experiments and cohorts.

use super::attempt::{Attempts, Early};
use super::{Author, Deploy, DeployError, Scope};
use crate::loader::{LoadError, Overrides};
use nova_model::artifact::PolicyRef;
use nova_model::experiments::cohort::Rule;
use nova_model::experiments::spec::{ExperimentSpec, ExperimentState, VariationSpec};
use nova_model::lifecycle::{in_service, variation_quarantine};
use nova_model::registry::{Change, Experiment, RegistryState};

impl Deploy {
    /// Creates or changes an experiment.
    ///
    /// # Errors
    /// Returns every field that is wrong. Returns a conflict if the experiment assigns viewers
    /// already and the change is more than a larger coverage.
    pub async fn put_experiment<'a>(
        &self,
        key: &str,
        spec: ExperimentSpec,
        author: impl Into<Author<'a>>,
    ) -> Result<(Experiment, bool), DeployError> {
        let author = author.into();
        let spec = spec.without_negative_zero();
        let mut attempts = Attempts::new();
        loop {
            let made = self.try_to_put_experiment(key, spec.clone(), author).await;
            if !attempts.again(&made) {
                return self.finish(author, made).await;
            }
        }
    }

    async fn try_to_put_experiment(
        &self,
        key: &str,
        mut spec: ExperimentSpec,
        author: Author<'_>,
    ) -> Result<(Experiment, bool), DeployError> {
        let mut early = self.load_early(policies_of(&spec)).await;
        let _changing = self.begin_change_by(author).await?;
        let serving = self.serving.load_full();
        self.check_experiment(&mut early, &serving.state, &spec)?;
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
        // Equal numbers of a running experiment stay as they are stored, down to -0, because its
        // digests are computed from them.
        if let (ExperimentState::Running | ExperimentState::Paused, Some(current)) =
            (state, current)
        {
            spec = ExperimentSpec {
                coverage: spec.coverage,
                ..current.spec.clone()
            };
        }
        let experiment = Experiment { spec, state };
        let change = Change::PutExperiment {
            key: key.to_owned(),
            experiment: experiment.clone(),
        };
        self.carry_out(change, author.actor).await?;
        Ok((experiment, current.is_none()))
    }

    fn check_experiment(
        &self,
        early: &mut Early,
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
            match self.require_loaded(early, state, &variation.policy, overrides.as_ref()) {
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
    pub async fn set_experiment_state<'a>(
        &self,
        key: &str,
        next: ExperimentState,
        author: impl Into<Author<'a>>,
    ) -> Result<(Experiment, Scope), DeployError> {
        let author = author.into();
        let mut attempts = Attempts::new();
        loop {
            let made = self.try_to_set_experiment_state(key, next, author).await;
            if !attempts.again(&made) {
                return self.finish(author, made).await;
            }
        }
    }

    async fn try_to_set_experiment_state(
        &self,
        key: &str,
        next: ExperimentState,
        author: Author<'_>,
    ) -> Result<(Experiment, Scope), DeployError> {
        let known = self.serving().state.experiments.get(key).cloned();
        let starts = known.filter(|_| next == ExperimentState::Running);
        let needed = starts.map(|experiment| policies_of(&experiment.spec));
        // What cannot be loaded now is left out, and the host goes on trying.
        let _early = self.load_early(needed.unwrap_or_default()).await;
        let _changing = self.begin_change_by(author).await?;
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
        let scope = self.carry_out(change, author.actor).await?;
        tracing::info!(
            experiment = key,
            state = next.as_str(),
            actor = author.actor,
            "experiment changed"
        );
        Ok((experiment, scope))
    }

    /// Creates or replaces a cohort. Returns true if it is new.
    ///
    /// # Errors
    /// Fails if the rule is invalid. Returns a conflict if an experiment assigns viewers of this
    /// cohort, because its viewers would change under it.
    pub async fn put_cohort<'a>(
        &self,
        key: &str,
        rule: Rule,
        author: impl Into<Author<'a>>,
    ) -> Result<bool, DeployError> {
        let author = author.into();
        rule.check()
            .map_err(|reason| DeployError::Invalid(vec![("rule".into(), reason)]))?;
        if key == "all" {
            return Err(DeployError::Conflict(
                "the cohort `all` contains every viewer and cannot be changed; choose another key"
                    .into(),
            ));
        }
        let mut attempts = Attempts::new();
        loop {
            let made = self.try_to_put_cohort(key, &rule, author).await;
            if !attempts.again(&made) {
                return self.finish(author, made).await;
            }
        }
    }

    async fn try_to_put_cohort(
        &self,
        key: &str,
        rule: &Rule,
        author: Author<'_>,
    ) -> Result<bool, DeployError> {
        let _changing = self.begin_change_by(author).await?;
        let serving = self.serving.load_full();
        let current = serving.state.cohorts.get(key);
        if current.is_some_and(|current| current != rule)
            && let Some((experiment, state)) = assigns_cohort(&serving.state, key)
        {
            return Err(DeployError::Conflict(format!(
                "experiment `{experiment}` is {} and uses cohort `{key}`; stop the experiment first, or put the rule under another key",
                state.as_str()
            )));
        }
        let change = Change::PutCohort {
            key: key.to_owned(),
            rule: rule.clone(),
        };
        self.carry_out(change, author.actor).await?;
        Ok(current.is_none())
    }
}

/// Returns the policies of all variations, with their parameter values.
fn policies_of(spec: &ExperimentSpec) -> Vec<(PolicyRef, Option<Overrides>)> {
    let variations = spec.variations.iter();
    variations
        .map(|variation| {
            let overrides = variation.params.clone().map(Into::into);
            (variation.policy.clone(), overrides)
        })
        .collect()
}

/// Returns an experiment that assigns viewers of a cohort. A paused one does too, because it keeps
/// its assignments for when it goes on.
fn assigns_cohort<'a>(
    state: &'a RegistryState,
    cohort: &str,
) -> Option<(&'a str, ExperimentState)> {
    let assigns = [ExperimentState::Running, ExperimentState::Paused];
    let mut experiments = state.experiments.iter();
    experiments
        .find(|(_, experiment)| {
            assigns.contains(&experiment.state) && experiment.spec.cohort == cohort
        })
        .map(|(key, experiment)| (key.as_str(), experiment.state))
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
