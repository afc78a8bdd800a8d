//! A published policy, compiled and ready to rank.

use super::memory::Claim;
use super::module::{CallBudget, Module, StageCall};
use super::ranking::Stages;
use super::reason::Reason;
use nova_model::artifact::{Digest, Manifest, PerStage, PolicySpec, Stage, StageSpec};
use nova_model::budget::Outcomes;
use nova_model::failure::{FailureKind, PolicyFailure};
use nova_model::features::Feature;
use nova_policy_sdk::{Candidates, Ranked, Request};
use nova_support::metrics::PolicyMetrics;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct LoadedPolicy {
    pub spec: PolicySpec,
    /// The digest of the published version.
    pub digest: Digest,
    /// The digest of what runs. It differs from `digest` when an experiment overrides parameters.
    pub effective_digest: Digest,
    /// `effective_digest` as hexadecimal text.
    pub digest_hex: Arc<str>,
    pub modules: PerStage<Arc<Module>>,
    /// Outcomes of its calls, shared by all policies with the same effective digest.
    pub outcomes: Arc<Outcomes>,
    /// Parameter values in the order that each module declares.
    params: PerStage<Vec<f64>>,
    /// Its counters, which have series only while the policy is in use.
    pub metrics: PolicyMetrics,
}

impl LoadedPolicy {
    /// Binds a spec to its compiled modules.
    ///
    /// # Errors
    /// Returns one reason for each module of the wrong stage and for each parameter that its
    /// module does not declare or whose value is out of range.
    pub fn bind(
        published: Digest,
        spec: PolicySpec,
        modules: PerStage<Arc<Module>>,
    ) -> Result<Self, Vec<Reason>> {
        let misfits = |stage| misfits(stage, modules.get(stage), &spec.stages.get(stage).params);
        let reasons: Vec<Reason> = Stage::ALL.into_iter().flat_map(misfits).collect();
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let ordered = |stage| {
            let values = &spec.stages.get(stage).params;
            let declared = modules.get(stage).description.parameters.iter();
            declared
                .map(|p| values.get(&p.name).copied().unwrap_or(p.default))
                .collect()
        };
        let params = PerStage {
            dedup: ordered(Stage::Dedup),
            score: ordered(Stage::Score),
            saturation: ordered(Stage::Saturation),
        };
        let effective_digest = spec.digest();
        let metrics = PolicyMetrics::new(&spec.policy.to_string());
        Ok(Self {
            digest: published,
            effective_digest,
            digest_hex: effective_digest.to_string().into(),
            spec,
            modules,
            outcomes: Arc::default(),
            params,
            metrics,
        })
    }

    pub fn params(&self, stage: Stage) -> &[f64] {
        self.params.get(stage)
    }

    /// Returns the arguments of a call of `stage`, with this policy's parameter values.
    pub fn call<'a>(
        &'a self,
        budget: CallBudget,
        stage: Stage,
        request: &'a Request,
    ) -> StageCall<'a> {
        StageCall {
            budget,
            request,
            params: self.params(stage),
        }
    }

    /// Returns the time limit of the three stages together: the manifest's, or the operator's if
    /// that is shorter.
    pub fn deadline(&self) -> Duration {
        let own = Duration::from_millis(self.spec.limits.deadline_ms.into());
        own.min(self.modules.score.deadline_max())
    }

    /// Returns the memory that the instances of its modules have reserved, in bytes. Policies that
    /// share a module share its instances, and each of them includes all of them.
    pub fn instance_bytes(&self) -> u64 {
        Stage::ALL
            .iter()
            .map(|stage| self.modules.get(*stage).reserved_bytes())
            .sum()
    }

    /// Returns the budget of the three stages together, starting now. `left` is the time that the
    /// request has left and caps the deadline.
    pub fn budget(&self, left: Duration) -> CallBudget {
        self.budget_without_deadline(self.deadline().min(left))
    }

    /// Returns a budget of `time`, without the policy's own deadline, for runs that serve no
    /// viewer. Explaining a ranking takes many more calls than making it, and the policy's
    /// deadline applies to the latter.
    pub fn budget_without_deadline(&self, time: Duration) -> CallBudget {
        CallBudget {
            deadline: Instant::now() + time,
            memory_bytes: (self.spec.limits.memory_mb as usize) << 20,
            mode: self.spec.limits.instance,
            claim: Claim::Other,
        }
    }

    /// Returns the stages of one ranking, which share one deadline.
    pub fn running(&self, budget: CallBudget) -> Running<'_> {
        Running {
            policy: self,
            budget,
            is_counted: true,
        }
    }

    /// Counts a failure that happened before any stage could run.
    pub fn observe_unrun(&self, failure: &PolicyFailure) {
        self.metrics
            .observe(failure.stage, Duration::ZERO, Some(failure.kind));
    }
}

/// Returns the published form: modules by digest, and every declared parameter with its value.
pub fn resolve(manifest: &Manifest, modules: &PerStage<Arc<Module>>) -> PolicySpec {
    let stage = |stage: Stage| {
        let module = modules.get(stage);
        let defaults = module
            .description
            .parameters
            .iter()
            .map(|p| (p.name.clone(), p.default));
        let mut params: BTreeMap<String, f64> = defaults.collect();
        params.extend(manifest.stage(stage).params.clone());
        StageSpec {
            module: module.digest,
            params,
        }
    };
    PolicySpec {
        policy: manifest.policy_ref(),
        description: manifest.description.clone(),
        stages: PerStage {
            dedup: stage(Stage::Dedup),
            score: stage(Stage::Score),
            saturation: stage(Stage::Saturation),
        },
        limits: manifest.limits,
        signature: None,
    }
}

/// Returns the reasons that prevent `module` from serving `stage` with these values: it is of
/// another stage, does not declare a parameter, or declares a range that excludes a value.
pub fn misfits(stage: Stage, module: &Module, values: &BTreeMap<String, f64>) -> Vec<Reason> {
    if module.stage != stage {
        let message = format!("{stage}: the module is a {} module", module.stage);
        return vec![Reason::new("wrong_stage", stage, message)];
    }
    let declared = &module.description.parameters;
    let misfit = |(name, value): (&String, &f64)| match declared.iter().find(|p| p.name == *name) {
        None => Some(unknown_parameter(stage, name, module)),
        Some(p) if !(p.min..=p.max).contains(value) => Some(format!(
            "{stage}.params.{name}: {value} is not within {} … {}",
            p.min, p.max
        )),
        Some(_) => None,
    };
    let messages = values.iter().filter_map(misfit);
    messages
        .map(|message| Reason::new("parameter", stage, message))
        .collect()
}

fn unknown_parameter(stage: Stage, name: &str, module: &Module) -> String {
    let declared = module
        .description
        .parameters
        .iter()
        .map(|p| p.name.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "{stage}.params.{name}: unknown parameter; {} takes {declared}",
        module.description.name
    )
}

/// The stages of a policy for one ranking.
#[derive(Debug)]
pub struct Running<'a> {
    policy: &'a LoadedPolicy,
    budget: CallBudget,
    is_counted: bool,
}

impl Running<'_> {
    /// Leaves the calls out of the policy's metrics, because these count only what was served to
    /// viewers.
    pub fn uncounted(self) -> Self {
        Self {
            is_counted: false,
            ..self
        }
    }

    fn call<'b>(&'b self, stage: Stage, request: &'b Request) -> StageCall<'b> {
        self.policy.call(self.budget, stage, request)
    }
}

impl Stages for Running<'_> {
    fn features(&self, stage: Stage) -> &[Feature] {
        &self.policy.modules.get(stage).features
    }

    fn dedup(
        &self,
        request: &Request,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        let call = self.call(Stage::Dedup, request);
        self.policy.modules.dedup.dedup(call, candidates)
    }

    fn score(
        &self,
        request: &Request,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<f32>, PolicyFailure> {
        let call = self.call(Stage::Score, request);
        self.policy.modules.score.score(call, candidates)
    }

    fn saturate(&self, request: &Request, ranked: &Ranked<'_>) -> Result<Vec<u32>, PolicyFailure> {
        let call = self.call(Stage::Saturation, request);
        self.policy.modules.saturation.saturate(call, ranked)
    }

    fn observe(&self, stage: Stage, took: Duration, failure: Option<FailureKind>) {
        if self.is_counted {
            self.policy.metrics.observe(stage, took, failure);
        }
    }
}
