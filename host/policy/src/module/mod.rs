//! One compiled module and the calls into it.

mod description;
mod error;
mod runner;

pub use description::{Description, Parameter};
pub use error::ModuleError;
pub use runner::CallBudget;

use super::bindings::{deduper, saturator, scorer};
use super::engine::{ClassEngine, root_cause};
use super::meter::Meter;
use super::sandbox::Sandbox;
use super::shape::Shape;
use nova_model::artifact::{Digest, InstanceMode, Stage};
use nova_model::failure::{FailureKind, PolicyFailure};
use nova_model::features::Feature;
use nova_policy_sdk::{Candidates, Ranked, Request};
use runner::Runner;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::component::InstancePre;

/// Time limit of `describe`, which is called once, off the serving path.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(1);

/// Facts about a module other than its code.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub digest: Digest,
    pub shape: Shape,
    pub stage: Stage,
    /// Time that compilation took. `None` if the code was read from the compile cache.
    pub compiled_in: Option<Duration>,
}

pub struct Module {
    pub digest: Digest,
    pub shape: Shape,
    pub stage: Stage,
    pub compiled_in: Option<Duration>,
    pub description: Description,
    pub features: Vec<Feature>,
    linked: Linked,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module")
            .field("digest", &self.digest)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

enum Linked {
    Dedup(Runner<deduper::DeduperPre<Sandbox>>),
    Score(Runner<scorer::ScorerPre<Sandbox>>),
    Saturation(Runner<saturator::SaturatorPre<Sandbox>>),
}

/// Converts a description. The generated types of the three worlds differ only in their paths.
macro_rules! description_from {
    ($generated:expr) => {{
        let generated = $generated;
        Description {
            name: generated.name,
            version: generated.version,
            features: generated.features,
            parameters: generated
                .parameters
                .into_iter()
                .map(|p| Parameter {
                    name: p.name,
                    default: p.default,
                    min: p.min,
                    max: p.max,
                    doc: p.doc,
                })
                .collect(),
            explains: generated.explains,
        }
    }};
}

macro_rules! request_for {
    ($module:ident :: $interface:ident, $request:expr) => {
        $module::exports::nova::policy::$interface::Request {
            user_id: $request.user_id,
            now_ms: $request.now_ms,
            seed: $request.seed,
            limit: $request.limit,
        }
    };
}

macro_rules! candidates_for {
    ($module:ident :: $interface:ident, $candidates:expr) => {
        $module::exports::nova::policy::$interface::Candidates {
            post_ids: $candidates.post_ids,
            author_ids: $candidates.author_ids,
            created_at_ms: $candidates.created_at_ms,
            features: $candidates.features,
        }
    };
}

fn ranked_for<'a>(ranked: &Ranked<'a>) -> saturator::exports::nova::policy::saturation::Ranked<'a> {
    saturator::exports::nova::policy::saturation::Ranked {
        post_ids: ranked.post_ids,
        author_ids: ranked.author_ids,
        created_at_ms: ranked.created_at_ms,
        features: ranked.features,
        scores: ranked.scores,
    }
}

impl Module {
    pub(super) fn link(
        engine: Arc<ClassEngine>,
        origin: Origin,
        pre: InstancePre<Sandbox>,
    ) -> Result<Self, ModuleError> {
        let Origin {
            digest,
            shape,
            stage,
            compiled_in,
        } = origin;
        let invalid = |error: wasmtime::Error| ModuleError::Invalid(root_cause(&error));
        let budget = CallBudget {
            deadline: Instant::now() + DESCRIBE_DEADLINE,
            memory_bytes: engine.limits.describe_memory_bytes,
            mode: InstanceMode::Fresh,
        };
        let (linked, described) = match stage {
            Stage::Dedup => {
                let runner = Runner::new(
                    engine,
                    stage,
                    deduper::DeduperPre::new(pre).map_err(invalid)?,
                );
                let described = runner.call(budget, |store, instance| {
                    Ok(description_from!(
                        instance.nova_policy_dedup().call_describe(store)?
                    ))
                });
                (Linked::Dedup(runner), described)
            }
            Stage::Score => {
                let runner =
                    Runner::new(engine, stage, scorer::ScorerPre::new(pre).map_err(invalid)?);
                let described = runner.call(budget, |store, instance| {
                    Ok(description_from!(
                        instance.nova_policy_score().call_describe(store)?
                    ))
                });
                (Linked::Score(runner), described)
            }
            Stage::Saturation => {
                let runner = Runner::new(
                    engine,
                    stage,
                    saturator::SaturatorPre::new(pre).map_err(invalid)?,
                );
                let described = runner.call(budget, |store, instance| {
                    Ok(description_from!(
                        instance.nova_policy_saturation().call_describe(store)?
                    ))
                });
                (Linked::Saturation(runner), described)
            }
        };
        let description = described.map_err(ModuleError::Describe)?;
        let features = description::check(&description)?;
        Ok(Self {
            digest,
            shape,
            stage,
            compiled_in,
            description,
            features,
            linked,
        })
    }

    /// Returns the meter, if the module was loaded for measurement.
    pub fn meter(&self) -> Option<&Meter> {
        let engine = match &self.linked {
            Linked::Dedup(runner) => runner.engine(),
            Linked::Score(runner) => runner.engine(),
            Linked::Saturation(runner) => runner.engine(),
        };
        engine.meter.as_ref()
    }

    pub fn dedup(
        &self,
        budget: CallBudget,
        request: &Request,
        params: &[f64],
        candidates: &Candidates<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        let Linked::Dedup(runner) = &self.linked else {
            return Err(self.wrong_stage(Stage::Dedup));
        };
        runner.call(budget, |store, instance| {
            instance.nova_policy_dedup().call_dedup(
                store,
                request_for!(deduper::dedup, request),
                params,
                candidates_for!(deduper::dedup, candidates),
            )
        })
    }

    pub fn score(
        &self,
        budget: CallBudget,
        request: &Request,
        params: &[f64],
        candidates: &Candidates<'_>,
    ) -> Result<Vec<f32>, PolicyFailure> {
        let Linked::Score(runner) = &self.linked else {
            return Err(self.wrong_stage(Stage::Score));
        };
        runner
            .call(budget, |store, instance| {
                let scores = instance.nova_policy_score().call_score(
                    store,
                    request_for!(scorer::score, request),
                    params,
                    candidates_for!(scorer::score, candidates),
                )?;
                Ok(Floats(scores))
            })
            .map(|Floats(scores)| scores)
    }

    pub fn saturate(
        &self,
        budget: CallBudget,
        request: &Request,
        params: &[f64],
        ranked: &Ranked<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        let Linked::Saturation(runner) = &self.linked else {
            return Err(self.wrong_stage(Stage::Saturation));
        };
        runner.call(budget, |store, instance| {
            instance.nova_policy_saturation().call_saturate(
                store,
                request_for!(saturator::saturation, request),
                params,
                ranked_for(ranked),
            )
        })
    }

    /// Returns a reason code for each candidate, as `dedup` decided on them.
    pub fn explain_dedup(
        &self,
        budget: CallBudget,
        request: &Request,
        params: &[f64],
        candidates: &Candidates<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        let Linked::Dedup(runner) = &self.linked else {
            return Err(self.wrong_stage(Stage::Dedup));
        };
        runner.call(budget, |store, instance| {
            instance.nova_policy_dedup().call_explain(
                store,
                request_for!(deduper::dedup, request),
                params,
                candidates_for!(deduper::dedup, candidates),
            )
        })
    }

    /// Returns the component columns of the candidates given to `score`, column after column.
    pub fn explain_score(
        &self,
        budget: CallBudget,
        request: &Request,
        params: &[f64],
        candidates: &Candidates<'_>,
    ) -> Result<Vec<f32>, PolicyFailure> {
        let Linked::Score(runner) = &self.linked else {
            return Err(self.wrong_stage(Stage::Score));
        };
        runner
            .call(budget, |store, instance| {
                let columns = instance.nova_policy_score().call_explain(
                    store,
                    request_for!(scorer::score, request),
                    params,
                    candidates_for!(scorer::score, candidates),
                )?;
                Ok(Floats(columns))
            })
            .map(|Floats(columns)| columns)
    }

    /// Returns a reason code for each candidate, as `saturate` placed them.
    pub fn explain_saturation(
        &self,
        budget: CallBudget,
        request: &Request,
        params: &[f64],
        ranked: &Ranked<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        let Linked::Saturation(runner) = &self.linked else {
            return Err(self.wrong_stage(Stage::Saturation));
        };
        runner.call(budget, |store, instance| {
            instance.nova_policy_saturation().call_explain(
                store,
                request_for!(saturator::saturation, request),
                params,
                ranked_for(ranked),
            )
        })
    }

    /// Returns the failure of a module called for another stage. Publication binds modules to the
    /// stage they export, so this is a bug of the host. It is still reported as a policy failure,
    /// because a feed must not depend on the host being correct here.
    fn wrong_stage(&self, wanted: Stage) -> PolicyFailure {
        PolicyFailure::new(
            wanted,
            FailureKind::Trap,
            format!("module {} is a {} module", self.digest, self.stage),
        )
    }
}

/// Floats compared by their bits, so that NaN equals NaN when the answers of two calls are
/// compared.
struct Floats(Vec<f32>);

impl PartialEq for Floats {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self
                .0
                .iter()
                .zip(&other.0)
                .all(|(a, b)| a.to_bits() == b.to_bits())
    }
}
