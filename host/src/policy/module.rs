//! One compiled module and the calls into it.

use super::artifact::{Digest, InstanceMode, Stage};
use super::bindings::{deduper, saturator, scorer};
use super::compiler::CompileError;
use super::engine::{ClassEngine, root_cause};
use super::failure::{FailureKind, PolicyFailure};
use super::features::Feature;
use super::meter::Meter;
use super::sandbox::Sandbox;
use super::shape::Shape;
use nova_policy_sdk::{Candidates, Ranked, Request};
use serde::Serialize;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wasmtime::component::InstancePre;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

/// Idle instances of one module: no more calls than workers can run at once.
const IDLE_PER_MODULE_MAX: usize = 16;
/// An instance serves at most this many calls, so that whatever a guest leaks has an end.
const CALLS_PER_INSTANCE_MAX: u32 = 10_000;
/// One reused call in this many is run again on a fresh instance and the answers are compared.
const RECHECK_EVERY: u32 = 1_024;
/// `describe` is called once, off the serving path.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(1);
/// Bounds on what a module may say of itself.
const DESCRIPTION_ENTRIES_MAX: usize = 256;
const DESCRIPTION_TEXT_BYTES_MAX: usize = 1_024;

/// Why bytes are not a module.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    #[error("not WebAssembly: the file does not begin with \\0asm")]
    NotWasm,
    #[error("a core module, not a component: build it with `nova policy build`")]
    CoreModule,
    #[error("not a valid component: {0}")]
    Invalid(String),
    #[error("imports {}: a policy imports nothing", quoted(.0))]
    Imports(Vec<String>),
    #[error("wrong world: it exports {}, not one of nova:policy/dedup, nova:policy/score, nova:policy/saturation @1.0.0", quoted(.0))]
    WrongWorld(Vec<String>),
    #[error(
        "speaks {interface}@{found}, and this host speaks {interface}@{offered}: build it with an SDK of that version"
    )]
    AbiVersion {
        interface: &'static str,
        found: String,
        offered: &'static str,
    },
    #[error("too complex: {0}")]
    TooComplex(String),
    #[error(transparent)]
    Uncompiled(CompileError),
    #[error("describe failed: {0}")]
    Describe(PolicyFailure),
    #[error("description: {0}")]
    Description(String),
}

impl ModuleError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ModuleError::NotWasm => "not_wasm",
            ModuleError::CoreModule => "core_module",
            ModuleError::Invalid(_) => "invalid_component",
            ModuleError::Imports(_) => "imports",
            ModuleError::WrongWorld(_) => "wrong_world",
            ModuleError::AbiVersion { .. } => "abi_version",
            ModuleError::TooComplex(_) => "too_complex",
            ModuleError::Uncompiled(_) => "compile_time",
            ModuleError::Describe(_) => "describe",
            ModuleError::Description(_) => "description",
        }
    }
}

impl From<CompileError> for ModuleError {
    fn from(error: CompileError) -> Self {
        match error {
            CompileError::Invalid(error) => ModuleError::Invalid(root_cause(&error)),
            other => ModuleError::Uncompiled(other),
        }
    }
}

fn quoted(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Description {
    pub name: String,
    pub version: String,
    pub features: Vec<String>,
    pub parameters: Vec<Parameter>,
    pub explains: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Parameter {
    pub name: String,
    pub default: f64,
    pub min: f64,
    pub max: f64,
    pub doc: String,
}

/// Where a module came from, apart from its code.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub digest: Digest,
    pub shape: Shape,
    pub stage: Stage,
    /// `None`: it was compiled before, and read from disk.
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

/// What one call may use.
#[derive(Debug, Clone, Copy)]
pub struct CallBudget {
    pub deadline: Instant,
    pub memory_bytes: usize,
    pub mode: InstanceMode,
}

/// The generated types of the three worlds differ only in their paths.
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
        let features = check_description(&description)?;
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

    /// Of a module that was loaded to be measured.
    pub fn meter(&self) -> Option<&Meter> {
        let engine = match &self.linked {
            Linked::Dedup(runner) => &runner.engine,
            Linked::Score(runner) => &runner.engine,
            Linked::Saturation(runner) => &runner.engine,
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

    /// Reason codes of the candidates given to `dedup`.
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

    /// Component columns of the candidates given to `score`, column-major.
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

    /// Reason codes of the candidates given to `saturate`.
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

    /// Publication binds modules to the stage they export, so this is a mistake of the host; it is
    /// answered like a policy failure because a feed must not depend on the host being right here.
    fn wrong_stage(&self, wanted: Stage) -> PolicyFailure {
        PolicyFailure::new(
            wanted,
            FailureKind::Trap,
            format!("module {} is a {} module", self.digest, self.stage),
        )
    }
}

fn check_description(description: &Description) -> Result<Vec<Feature>, ModuleError> {
    let refuse = |reason: String| Err(ModuleError::Description(reason));
    let texts = [&description.name, &description.version].into_iter();
    let texts = texts
        .chain(&description.features)
        .chain(&description.explains);
    let texts = texts.chain(
        description
            .parameters
            .iter()
            .flat_map(|p| [&p.name, &p.doc]),
    );
    if let Some(long) = texts
        .map(String::len)
        .find(|&bytes| bytes > DESCRIPTION_TEXT_BYTES_MAX)
    {
        return refuse(format!(
            "a text of {long} bytes; {DESCRIPTION_TEXT_BYTES_MAX} are allowed"
        ));
    }
    let sizes = [
        description.features.len(),
        description.parameters.len(),
        description.explains.len(),
    ];
    if sizes.iter().any(|&size| size > DESCRIPTION_ENTRIES_MAX) {
        return refuse(format!(
            "more than {DESCRIPTION_ENTRIES_MAX} entries in a list"
        ));
    }
    if semver::Version::parse(&description.version).is_err() {
        return refuse(format!(
            "version `{}` is not a semantic version",
            description.version
        ));
    }
    for (at, parameter) in description.parameters.iter().enumerate() {
        let Parameter {
            name,
            default,
            min,
            max,
            ..
        } = parameter;
        if description.parameters[..at]
            .iter()
            .any(|other| other.name == *name)
        {
            return refuse(format!("parameter `{name}` is declared twice"));
        }
        if !(min.is_finite() && max.is_finite() && min <= default && default <= max) {
            return refuse(format!(
                "parameter `{name}`: default {default} is not within {min} … {max}"
            ));
        }
    }
    let unknown = description
        .features
        .iter()
        .find(|name| Feature::parse(name).is_none());
    if let Some(name) = unknown {
        let offered = Feature::ALL
            .iter()
            .map(|feature| feature.name())
            .collect::<Vec<_>>()
            .join(", ");
        return refuse(format!(
            "unknown feature `{name}`; this host offers {offered}"
        ));
    }
    Ok(description
        .features
        .iter()
        .filter_map(|name| Feature::parse(name))
        .collect())
}

/// Floats compared by their bits: a policy that answers NaN twice answers the same twice.
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

/// A generated, pre-linked world.
trait World: Send + Sync {
    type Instance: Send;
    fn instantiate(&self, store: &mut Store<Sandbox>) -> wasmtime::Result<Self::Instance>;
}

macro_rules! world {
    ($pre:ty, $instance:ty) => {
        impl World for $pre {
            type Instance = $instance;
            fn instantiate(&self, store: &mut Store<Sandbox>) -> wasmtime::Result<Self::Instance> {
                <$pre>::instantiate(self, store)
            }
        }
    };
}
world!(deduper::DeduperPre<Sandbox>, deduper::Deduper);
world!(scorer::ScorerPre<Sandbox>, scorer::Scorer);
world!(saturator::SaturatorPre<Sandbox>, saturator::Saturator);

struct Idle<I> {
    store: Store<Sandbox>,
    instance: I,
    calls: u32,
}

/// Runs calls on fresh or reused instances of one module.
struct Runner<W: World> {
    engine: Arc<ClassEngine>,
    stage: Stage,
    pre: W,
    idle: Mutex<Vec<Idle<W::Instance>>>,
    /// Set for good when a reused instance answered otherwise than a fresh one.
    reuse_refuted: AtomicBool,
    calls_until_recheck: AtomicU32,
}

impl<W: World> Drop for Runner<W> {
    fn drop(&mut self) {
        let idle = self.idle.get_mut().map_or(0, |idle| idle.len());
        self.engine.end_idle(idle);
    }
}

impl<W: World> Runner<W> {
    fn new(engine: Arc<ClassEngine>, stage: Stage, pre: W) -> Self {
        Self {
            engine,
            stage,
            pre,
            idle: Mutex::new(Vec::new()),
            reuse_refuted: AtomicBool::new(false),
            calls_until_recheck: AtomicU32::new(RECHECK_EVERY),
        }
    }

    fn call<R: PartialEq>(
        &self,
        budget: CallBudget,
        call: impl Fn(&mut Store<Sandbox>, &W::Instance) -> wasmtime::Result<R>,
    ) -> Result<R, PolicyFailure> {
        if budget.mode == InstanceMode::Fresh || self.reuse_refuted.load(Ordering::Relaxed) {
            return self
                .call_once(self.instantiate(budget)?, budget, &call)
                .map(|(answer, _)| answer);
        }
        let instance = match self.take_idle(budget.memory_bytes) {
            Some(instance) => instance,
            None => self.instantiate(budget)?,
        };
        let (answer, instance) = self.call_once(instance, budget, &call)?;
        if self.calls_until_recheck.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.calls_until_recheck
                .store(RECHECK_EVERY, Ordering::Relaxed);
            let fresh = self
                .instantiate(budget)
                .and_then(|fresh| self.call_once(fresh, budget, &call));
            // A second run that fails, perhaps because little time was left for it, refutes nothing: there is an answer.
            if let Ok((fresh, _)) = fresh
                && fresh != answer
            {
                self.reuse_refuted.store(true, Ordering::Relaxed);
                tracing::error!(stage = %self.stage, "a reused instance answered otherwise than a fresh one; this module runs on fresh instances from now on");
                return Ok(fresh);
            }
        }
        self.keep_idle(instance);
        Ok(answer)
    }

    fn instantiate(&self, budget: CallBudget) -> Result<Idle<W::Instance>, PolicyFailure> {
        let mut store = Store::new(
            &self.engine.inner,
            Sandbox::new(budget.memory_bytes, self.engine.limits),
        );
        store.limiter(|sandbox| sandbox);
        if let Some(meter) = &self.engine.meter {
            store
                .set_fuel(meter.fuel_max())
                .map_err(|error| self.classify(&store, &error))?;
        }
        self.arm(&mut store, budget.deadline)?;
        match self.pre.instantiate(&mut store) {
            Ok(instance) => Ok(Idle {
                store,
                instance,
                calls: 0,
            }),
            Err(error) if self.is_hosts(&store, &error) => Err(PolicyFailure::new(
                self.stage,
                FailureKind::Pool,
                root_cause(&error),
            )),
            Err(error) => Err(self.classify(&store, &error)),
        }
    }

    /// Whether an instance could not be made for want of something that no guest asked for, as memory of the machine: what
    /// a guest does wrong here is a trap, or a refused growth. The host's want must not spend a policy's failure budget.
    fn is_hosts(&self, store: &Store<Sandbox>, error: &wasmtime::Error) -> bool {
        !error.is::<Trap>() && !store.data().memory_denied()
    }

    /// A trapped instance is dropped with its store: nothing in it can be trusted any more.
    fn call_once<R>(
        &self,
        mut idle: Idle<W::Instance>,
        budget: CallBudget,
        call: impl Fn(&mut Store<Sandbox>, &W::Instance) -> wasmtime::Result<R>,
    ) -> Result<(R, Idle<W::Instance>), PolicyFailure> {
        self.arm(&mut idle.store, budget.deadline)?;
        idle.store.data_mut().begin_call(budget.memory_bytes);
        let answer = call(&mut idle.store, &idle.instance);
        if let Some(meter) = &self.engine.meter {
            let fuel_left = idle.store.get_fuel().unwrap_or_default();
            meter.record(fuel_left, idle.store.data().memory_bytes());
        }
        match answer {
            Ok(answer) => {
                idle.calls += 1;
                Ok((answer, idle))
            }
            Err(error) => Err(self.classify(&idle.store, &error)),
        }
    }

    /// Deadlines are absolute: each call sets its own, in ticks from now.
    fn arm(&self, store: &mut Store<Sandbox>, deadline: Instant) -> Result<(), PolicyFailure> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(PolicyFailure::new(
                self.stage,
                FailureKind::Deadline,
                "no time was left for this stage",
            ));
        }
        // The current tick has partly passed, so n ticks are between n − 1 and n milliseconds.
        store.set_epoch_deadline(left.as_micros().div_ceil(1_000) as u64);
        Ok(())
    }

    fn classify(&self, store: &Store<Sandbox>, error: &wasmtime::Error) -> PolicyFailure {
        let kind = if error.is::<PoolConcurrencyLimitError>() {
            FailureKind::Pool
        } else if store.data().memory_denied() {
            FailureKind::Memory
        } else if matches!(
            error.downcast_ref::<Trap>(),
            Some(Trap::Interrupt | Trap::OutOfFuel)
        ) {
            FailureKind::Deadline
        } else {
            FailureKind::Trap
        };
        PolicyFailure::new(self.stage, kind, root_cause(error))
    }

    /// Instances are shared by all policies with this module. One that another policy let grow beyond `memory_bytes` ends here.
    fn take_idle(&self, memory_bytes: usize) -> Option<Idle<W::Instance>> {
        loop {
            let taken = self.idle.lock().ok()?.pop()?;
            self.engine.end_idle(1);
            if taken.store.data().memory_bytes() <= memory_bytes {
                return Some(taken);
            }
        }
    }

    fn keep_idle(&self, instance: Idle<W::Instance>) {
        if let Ok(mut idle) = self.idle.lock()
            && instance.calls < CALLS_PER_INSTANCE_MAX
            && idle.len() < IDLE_PER_MODULE_MAX
            && self.engine.begin_idle()
        {
            idle.push(instance);
        }
    }
}
