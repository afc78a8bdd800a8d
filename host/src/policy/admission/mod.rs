//! The one door through which a policy becomes a published version, whichever way it came: upload,
//! watched directory, command line or compiled in. Refusals list every reason at once.

pub mod golden;
pub mod reason;
pub mod record;
pub mod trial;

pub use reason::{Reason, Refusal};
pub use record::Record;

use crate::policy::artifact::{
    Digest, Limits, Manifest, ModuleSource, PerStage, PolicySpec, Stage, StageSpec,
};
use crate::policy::builtin;
use crate::policy::class::{Class, MEMORY_MB_MAX};
use crate::policy::engine::Engine;
use crate::policy::loaded::{LoadedPolicy, misfits};
use crate::policy::module::Module;
use golden::CANDIDATES_MAX;
use record::{FUEL_PER_MS, StageRecord};
use std::collections::BTreeMap;
use trial::Subject;

use std::sync::Arc;

/// A component larger than this is refused before it is compiled.
pub const MODULE_BYTES_MAX: usize = 48 << 20;
/// The longest a feed may be asked to wait for a policy.
pub const DEADLINE_MS_MAX: u32 = 1_000;

/// A policy as it arrives: the manifest's text and the files beside it, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyFiles {
    pub manifest: String,
    pub modules: BTreeMap<String, Vec<u8>>,
}

/// A policy that may be published.
#[derive(Debug)]
pub struct Admitted {
    pub loaded: Arc<LoadedPolicy>,
    pub module_bytes: Vec<(Digest, Vec<u8>)>,
    pub follow: bool,
    /// `None`: it was tried before.
    pub record: Option<Record>,
}

/// What admission knows of modules that were published before.
pub trait KnownModules: Send + Sync {
    /// A module that is already compiled.
    fn compiled(&self, digest: Digest) -> Option<Arc<Module>>;
    /// Bytes the registry keeps.
    fn bytes(&self, digest: Digest) -> Option<Vec<u8>>;
    /// Whether a policy of this digest was tried on the golden sets already: equal behaviour, equal verdict.
    fn is_tried(&self, policy: Digest) -> bool;
}

/// Where nothing was published before: on an author's machine, in a benchmark.
#[derive(Debug, Clone, Copy)]
pub struct NothingKnown;

impl KnownModules for NothingKnown {
    fn compiled(&self, _digest: Digest) -> Option<Arc<Module>> {
        None
    }

    fn bytes(&self, _digest: Digest) -> Option<Vec<u8>> {
        None
    }

    fn is_tried(&self, _policy: Digest) -> bool {
        false
    }
}

/// Checks a policy and compiles it. Blocks for as long as compilation takes: call it off the
/// async reactor and off the serving path.
///
/// # Errors
/// Every reason why the policy cannot be published.
pub fn admit(
    engine: &Engine,
    known: &dyn KnownModules,
    files: &PolicyFiles,
) -> Result<Admitted, Refusal> {
    let mut manifest = Manifest::parse(&files.manifest).map_err(|message| Refusal {
        reasons: vec![Reason::whole("manifest", message)],
    })?;
    let mut reasons = check_limits(&manifest);
    if !reasons.is_empty() {
        // They are refused; the rest is judged as if they were not there.
        manifest.limits = Limits::default();
    }
    let (mut found, mut sound) = (Vec::new(), Vec::new());
    for stage in Stage::ALL {
        match Found::new(engine, known, files, &manifest, stage) {
            Ok(module) => {
                let misfits = module.misfits(&manifest);
                if misfits.is_empty() {
                    sound.push(module.clone());
                }
                reasons.extend(misfits);
                found.push(module);
            }
            Err(reason) => reasons.push(reason),
        }
    }
    let policy = bind(&manifest, &found, &reasons)?;
    let record = match &policy {
        Some(policy) if known.is_tried(policy.digest) => None,
        _ => Some(try_all(engine, &manifest, &sound, &mut reasons)),
    };
    match policy {
        Some(loaded) if reasons.is_empty() => Ok(Admitted {
            loaded: Arc::new(loaded),
            module_bytes: found
                .into_iter()
                .map(|found| (found.module.digest, found.bytes))
                .collect(),
            follow: manifest.follow,
            record,
        }),
        _ => Err(Refusal { reasons }),
    }
}

/// One module as any policy might use it: with the defaults of its parameters and of limits.
///
/// # Errors
/// Every reason why no policy with it can be published.
pub fn admit_module(engine: &Engine, bytes: &[u8]) -> Result<(Module, StageRecord), Refusal> {
    let module = engine.load_upload(bytes).map_err(|error| Refusal {
        reasons: vec![Reason::whole(error.code(), error.to_string())],
    })?;
    let mut limits = Limits::default();
    if module.shape.class() == Class::Large {
        limits.memory_mb = MEMORY_MB_MAX;
    }
    let declared = module.description.parameters.iter();
    let params: Vec<f64> = declared.map(|parameter| parameter.default).collect();
    let tried = trial::try_stage(
        engine,
        Subject {
            stage: module.stage,
            module: &module,
            bytes,
            params: &params,
            limits,
        },
    );
    if !tried.reasons.is_empty() {
        return Err(Refusal {
            reasons: tried.reasons,
        });
    }
    Ok((module, tried.record))
}

/// `None` while there are reasons against it.
fn bind(
    manifest: &Manifest,
    found: &[Found],
    reasons: &[Reason],
) -> Result<Option<LoadedPolicy>, Refusal> {
    let [dedup, score, saturation] = found else {
        return Ok(None);
    };
    if !reasons.is_empty() {
        return Ok(None);
    }
    let modules = PerStage {
        dedup: dedup.module.clone(),
        score: score.module.clone(),
        saturation: saturation.module.clone(),
    };
    let spec = resolve(manifest, &modules);
    LoadedPolicy::bind(spec.digest(), spec, modules)
        .map(Some)
        .map_err(|reasons| Refusal { reasons })
}

/// Tries every stage that could be bound, also when another could not: whoever is refused learns everything at once.
fn try_all(
    engine: &Engine,
    manifest: &Manifest,
    sound: &[Found],
    reasons: &mut Vec<Reason>,
) -> Record {
    let mut record = Record {
        fuel: 0,
        fuel_allowed: u64::from(manifest.limits.deadline_ms) * FUEL_PER_MS,
        stages: PerStage::default(),
    };
    for found in sound {
        let stage = found.module.stage;
        let subject = Subject {
            stage,
            module: &found.module,
            bytes: &found.bytes,
            params: &found.params(manifest),
            limits: manifest.limits,
        };
        let tried = trial::try_stage(engine, subject);
        record.fuel += tried.record.fuel_at(CANDIDATES_MAX);
        *record.stages.get_mut(stage) = tried.record;
        reasons.extend(tried.reasons);
    }
    reasons.extend(misses_deadline(&record, manifest.limits.deadline_ms));
    record
}

/// Fuel says what fits on no machine. The clock says what does not fit on this one: by a factor of
/// two, and at best of several calls, so that being busy is no reason.
fn misses_deadline(record: &Record, deadline_ms: u32) -> Option<Reason> {
    const CLOCK_TOLERANCE: u64 = 2;
    let times = Stage::ALL.iter().map(|stage| record.stage(*stage).time_us);
    let took_ms = times.sum::<u64>().div_ceil(1_000);
    let message = if record.fuel > record.fuel_allowed {
        format!(
            "the stages use {} fuel over {CANDIDATES_MAX} candidates, and limits.deadline_ms = {deadline_ms} holds {} at most: do less, or raise it to {}",
            record.fuel,
            record.fuel_allowed,
            record.fuel.div_ceil(FUEL_PER_MS)
        )
    } else if took_ms > CLOCK_TOLERANCE * u64::from(deadline_ms) {
        format!(
            "the stages took {took_ms} ms over {CANDIDATES_MAX} candidates at best, and limits.deadline_ms is {deadline_ms}: do less, or raise it"
        )
    } else {
        return None;
    };
    Some(Reason::whole("deadline", message))
}

/// A stage's module with its bytes.
#[derive(Clone)]
struct Found {
    stage: Stage,
    module: Arc<Module>,
    bytes: Vec<u8>,
}

impl Found {
    fn new(
        engine: &Engine,
        known: &dyn KnownModules,
        files: &PolicyFiles,
        manifest: &Manifest,
        stage: Stage,
    ) -> Result<Self, Reason> {
        let bytes = find_bytes(known, files, stage, &manifest.stage(stage).module)
            .map_err(|message| Reason::new("module_missing", stage, message))?;
        let module = load(engine, known, stage, &bytes)?;
        Ok(Self {
            stage,
            module,
            bytes,
        })
    }

    /// Why it cannot be this stage of this policy.
    fn misfits(&self, manifest: &Manifest) -> Vec<Reason> {
        let (stage, module) = (self.stage, &self.module);
        let mut reasons = misfits(stage, module, &manifest.stage(stage).params);
        reasons.extend(lacks_memory(stage, module, manifest.limits.memory_mb));
        reasons
    }

    fn params(&self, manifest: &Manifest) -> Vec<f64> {
        let values = &manifest.stage(self.stage).params;
        let declared = self.module.description.parameters.iter();
        declared
            .map(|p| values.get(&p.name).copied().unwrap_or(p.default))
            .collect()
    }
}

fn check_limits(manifest: &Manifest) -> Vec<Reason> {
    let limits = manifest.limits;
    let mut reasons = Vec::new();
    if !(1..=DEADLINE_MS_MAX).contains(&limits.deadline_ms) {
        let message = format!(
            "limits.deadline_ms: {} is not within 1 … {DEADLINE_MS_MAX}",
            limits.deadline_ms
        );
        reasons.push(Reason::whole("limits", message));
    }
    if !(1..=MEMORY_MB_MAX).contains(&limits.memory_mb) {
        let message = format!(
            "limits.memory_mb: {} is not within 1 … {MEMORY_MB_MAX}",
            limits.memory_mb
        );
        reasons.push(Reason::whole("limits", message));
    }
    reasons
}

/// A module that begins with more memory than its policy allows cannot be instantiated even once.
fn lacks_memory(stage: Stage, module: &Module, memory_mb: u32) -> Option<Reason> {
    let needed_mb = module.shape.memory_bytes.div_ceil(1 << 20);
    (needed_mb > memory_mb.into()).then(|| {
        // Room for what it allocates while it runs.
        let enough_mb = (2 * needed_mb).next_power_of_two().min(MEMORY_MB_MAX.into());
        let message = format!("{stage}.module: begins with {needed_mb} MiB of memory, and limits.memory_mb is {memory_mb}: set memory_mb = {enough_mb}");
        Reason::new("memory", stage, message)
    })
}

fn find_bytes(
    known: &dyn KnownModules,
    files: &PolicyFiles,
    stage: Stage,
    source: &ModuleSource,
) -> Result<Vec<u8>, String> {
    match source {
        ModuleSource::File(name) => {
            files.modules.get(name).cloned().ok_or_else(|| {
                format!("{stage}.module: there is no file `{name}` beside policy.toml")
            })
        }
        ModuleSource::Published(digest) => known
            .bytes(*digest)
            .ok_or_else(|| format!("{stage}.module: no published policy has the module {digest}")),
        ModuleSource::Builtin(name) => builtin::module(name).map(<[u8]>::to_vec).ok_or_else(|| {
            let names = builtin::module_names().collect::<Vec<_>>().join(", ");
            format!("{stage}.module: there is no builtin `{name}`; there are {names}")
        }),
    }
}

fn load(
    engine: &Engine,
    known: &dyn KnownModules,
    stage: Stage,
    bytes: &[u8],
) -> Result<Arc<Module>, Reason> {
    if bytes.len() > MODULE_BYTES_MAX {
        let message = format!(
            "{stage}.module: {} bytes are more than the {MODULE_BYTES_MAX} allowed",
            bytes.len()
        );
        return Err(Reason::new("too_large", stage, message));
    }
    if let Some(module) = known.compiled(Digest::of(bytes)) {
        return Ok(module);
    }
    engine
        .load_upload(bytes)
        .map(Arc::new)
        .map_err(|error| Reason::new(error.code(), stage, format!("{stage}.module: {error}")))
}

/// The published form: modules by digest, every declared parameter with its value.
fn resolve(manifest: &Manifest, modules: &PerStage<Arc<Module>>) -> PolicySpec {
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
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
