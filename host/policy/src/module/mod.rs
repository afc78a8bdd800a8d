//! One compiled module and the calls into it.

mod description;
mod error;
mod runner;
mod surface;
mod world;

pub use description::{Description, Parameter};
pub use error::ModuleError;
pub use runner::CallBudget;
pub(super) use surface::check as check_surface;

use super::bindings::{deduper, saturator, scorer};
use super::class_engine::{ClassEngine, root_cause};
use super::memory::Claim;
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
use wasmtime::component::{Component, InstancePre};
use world::World;

/// Time limit of `describe`, which is called once, off the serving path.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(1);

/// Facts about a module other than its code.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub digest: Digest,
    pub shape: Shape,
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
    engine: Arc<ClassEngine>,
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

type Deduper = Runner<deduper::DeduperPre<Sandbox>>;
type Scorer = Runner<scorer::ScorerPre<Sandbox>>;
type Saturator = Runner<saturator::SaturatorPre<Sandbox>>;

enum Linked {
    Dedup(Deduper),
    Score(Scorer),
    Saturation(Saturator),
}

/// The arguments that all calls of a stage have: its budget, the request, and the parameter values
/// in the order in which the module declares them.
#[derive(Debug, Clone, Copy)]
pub struct StageCall<'a> {
    pub budget: CallBudget,
    pub request: &'a Request,
    pub params: &'a [f64],
}

impl Module {
    pub(super) fn link(
        engine: Arc<ClassEngine>,
        origin: Origin,
        component: &Component,
    ) -> Result<Self, ModuleError> {
        let stage = world::exported_stage(&engine.inner, component)?;
        let pre = engine.linker.instantiate_pre(component).map_err(invalid)?;
        let (linked, description) = match stage {
            Stage::Dedup => described(&engine, pre, Linked::Dedup),
            Stage::Score => described(&engine, pre, Linked::Score),
            Stage::Saturation => described(&engine, pre, Linked::Saturation),
        }?;
        let features = description::check(&description)?;
        let Origin {
            digest,
            shape,
            compiled_in,
        } = origin;
        Ok(Self {
            digest,
            shape,
            stage,
            compiled_in,
            description,
            features,
            engine,
            linked,
        })
    }

    /// Returns the meter, if the module was loaded for measurement.
    pub fn meter(&self) -> Option<&Meter> {
        self.engine.meter.as_ref()
    }

    /// Returns the bytes that all instances of this module have reserved, running and idle.
    pub fn reserved_bytes(&self) -> u64 {
        match &self.linked {
            Linked::Dedup(runner) => runner.reserved_bytes(),
            Linked::Score(runner) => runner.reserved_bytes(),
            Linked::Saturation(runner) => runner.reserved_bytes(),
        }
    }

    /// Returns the upper limit for the deadlines of policies with this module.
    pub fn deadline_max(&self) -> Duration {
        self.engine.common.settings.deadline_max
    }

    pub fn dedup(
        &self,
        call: StageCall<'_>,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        self.deduper()?.call(call.budget, |store, instance| {
            let (request, candidates) = (call.request.into(), candidates.into());
            let dedup = instance.nova_policy_dedup();
            dedup.call_dedup(store, request, call.params, candidates)
        })
    }

    pub fn score(
        &self,
        call: StageCall<'_>,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<f32>, PolicyFailure> {
        let scores = self.scorer()?.call(call.budget, |store, instance| {
            let (request, candidates) = (call.request.into(), candidates.into());
            let score = instance.nova_policy_score();
            let scores = score.call_score(store, request, call.params, candidates);
            scores.map(Floats)
        });
        scores.map(|Floats(scores)| scores)
    }

    pub fn saturate(
        &self,
        call: StageCall<'_>,
        ranked: &Ranked<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        self.saturator()?.call(call.budget, |store, instance| {
            let (request, ranked) = (call.request.into(), ranked.into());
            let saturation = instance.nova_policy_saturation();
            saturation.call_saturate(store, request, call.params, ranked)
        })
    }

    /// Returns a reason code for each candidate, as `dedup` decided on them.
    pub fn explain_dedup(
        &self,
        call: StageCall<'_>,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        self.deduper()?.call(call.budget, |store, instance| {
            let (request, candidates) = (call.request.into(), candidates.into());
            let dedup = instance.nova_policy_dedup();
            dedup.call_explain(store, request, call.params, candidates)
        })
    }

    /// Returns the component columns of the candidates given to `score`, column after column.
    pub fn explain_score(
        &self,
        call: StageCall<'_>,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<f32>, PolicyFailure> {
        let columns = self.scorer()?.call(call.budget, |store, instance| {
            let (request, candidates) = (call.request.into(), candidates.into());
            let score = instance.nova_policy_score();
            let columns = score.call_explain(store, request, call.params, candidates);
            columns.map(Floats)
        });
        columns.map(|Floats(columns)| columns)
    }

    /// Returns a reason code for each candidate, as `saturate` placed them.
    pub fn explain_saturation(
        &self,
        call: StageCall<'_>,
        ranked: &Ranked<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        self.saturator()?.call(call.budget, |store, instance| {
            let (request, ranked) = (call.request.into(), ranked.into());
            let saturation = instance.nova_policy_saturation();
            saturation.call_explain(store, request, call.params, ranked)
        })
    }

    fn deduper(&self) -> Result<&Deduper, PolicyFailure> {
        match &self.linked {
            Linked::Dedup(runner) => Ok(runner),
            _ => Err(self.wrong_stage(Stage::Dedup)),
        }
    }

    fn scorer(&self) -> Result<&Scorer, PolicyFailure> {
        match &self.linked {
            Linked::Score(runner) => Ok(runner),
            _ => Err(self.wrong_stage(Stage::Score)),
        }
    }

    fn saturator(&self) -> Result<&Saturator, PolicyFailure> {
        match &self.linked {
            Linked::Saturation(runner) => Ok(runner),
            _ => Err(self.wrong_stage(Stage::Saturation)),
        }
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

/// Links a component and asks it for its description.
fn described<W: World>(
    engine: &Arc<ClassEngine>,
    pre: InstancePre<Sandbox>,
    linked: impl FnOnce(Runner<W>) -> Linked,
) -> Result<(Linked, Description), ModuleError> {
    let budget = CallBudget {
        deadline: Instant::now() + DESCRIBE_DEADLINE,
        memory_bytes: engine.limits().describe_memory_bytes,
        mode: InstanceMode::Fresh,
        claim: Claim::Load,
    };
    let runner = Runner::new(engine.clone(), W::link(pre).map_err(invalid)?);
    let description = runner.call(budget, W::describe);
    Ok((linked(runner), description.map_err(ModuleError::Describe)?))
}

fn invalid(error: wasmtime::Error) -> ModuleError {
    ModuleError::Invalid(root_cause(&error))
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
