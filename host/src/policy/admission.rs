//! The one door through which a policy becomes a published version, whichever way it came: upload,
//! watched directory, command line or compiled in. Refusals list every reason at once.

use super::artifact::{Digest, Manifest, ModuleSource, PerStage, PolicySpec, Stage, StageSpec};
use super::builtin;
use super::class::MEMORY_MB_MAX;
use super::engine::Engine;
use super::loaded::{LoadedPolicy, misfits};
use super::module::Module;
use std::collections::{BTreeMap, HashMap};
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

/// Everything that is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy refused: {}", .reasons.join("; "))]
pub struct Refusal {
    pub reasons: Vec<String>,
}

impl Refusal {
    pub fn one(reason: impl Into<String>) -> Self {
        Self {
            reasons: vec![reason.into()],
        }
    }
}

/// A policy that may be published.
#[derive(Debug)]
pub struct Admitted {
    pub loaded: Arc<LoadedPolicy>,
    pub module_bytes: Vec<(Digest, Vec<u8>)>,
    pub follow: bool,
}

/// What admission knows of modules that were published before.
pub trait KnownModules: Send + Sync {
    /// A module that is already compiled.
    fn compiled(&self, digest: Digest) -> Option<Arc<Module>>;
    /// Bytes the registry keeps.
    fn bytes(&self, digest: Digest) -> Option<Vec<u8>>;
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
    let manifest = Manifest::parse(&files.manifest).map_err(Refusal::one)?;
    let mut reasons = check_limits(&manifest);
    let mut compiled = HashMap::<Digest, Arc<Module>>::new();
    let mut module_bytes = Vec::new();
    let mut modules = Vec::new();
    for stage in Stage::ALL {
        let module =
            find_bytes(known, files, stage, &manifest.stage(stage).module).and_then(|bytes| {
                load(engine, known, &mut compiled, stage, &bytes).map(|module| (module, bytes))
            });
        match module {
            Ok((module, bytes)) => {
                reasons.extend(misfits(stage, &module, &manifest.stage(stage).params));
                reasons.extend(lacks_memory(stage, &module, manifest.limits.memory_mb));
                module_bytes.push((module.digest, bytes));
                modules.push(module);
            }
            Err(reason) => reasons.push(reason),
        }
    }
    let [dedup, score, saturation] = match <[Arc<Module>; 3]>::try_from(modules) {
        Ok(modules) if reasons.is_empty() => modules,
        _ => return Err(Refusal { reasons }),
    };
    let modules = PerStage {
        dedup,
        score,
        saturation,
    };
    let spec = resolve(&manifest, &modules);
    let loaded =
        LoadedPolicy::bind(spec.digest(), spec, modules).map_err(|reasons| Refusal { reasons })?;
    Ok(Admitted {
        loaded: Arc::new(loaded),
        module_bytes,
        follow: manifest.follow,
    })
}

fn check_limits(manifest: &Manifest) -> Vec<String> {
    let limits = manifest.limits;
    let mut reasons = Vec::new();
    if !(1..=DEADLINE_MS_MAX).contains(&limits.deadline_ms) {
        reasons.push(format!(
            "limits.deadline_ms: {} is not within 1 … {DEADLINE_MS_MAX}",
            limits.deadline_ms
        ));
    }
    if !(1..=MEMORY_MB_MAX).contains(&limits.memory_mb) {
        reasons.push(format!(
            "limits.memory_mb: {} is not within 1 … {MEMORY_MB_MAX}",
            limits.memory_mb
        ));
    }
    reasons
}

/// A module that begins with more memory than its policy allows cannot be instantiated even once.
fn lacks_memory(stage: Stage, module: &Module, memory_mb: u32) -> Option<String> {
    let needed_mb = module.shape.memory_bytes.div_ceil(1 << 20);
    (needed_mb > memory_mb.into()).then(|| {
        // Room for what it allocates while it runs.
        let enough_mb = (2 * needed_mb).next_power_of_two().min(MEMORY_MB_MAX.into());
        format!("{stage}.module: begins with {needed_mb} MiB of memory, and limits.memory_mb is {memory_mb}: set memory_mb = {enough_mb}")
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
    compiled: &mut HashMap<Digest, Arc<Module>>,
    stage: Stage,
    bytes: &[u8],
) -> Result<Arc<Module>, String> {
    if bytes.len() > MODULE_BYTES_MAX {
        return Err(format!(
            "{stage}.module: {} bytes are more than the {MODULE_BYTES_MAX} allowed",
            bytes.len()
        ));
    }
    let digest = Digest::of(bytes);
    if let Some(module) = compiled
        .get(&digest)
        .cloned()
        .or_else(|| known.compiled(digest))
    {
        return Ok(module);
    }
    let module = engine
        .load(bytes)
        .map(Arc::new)
        .map_err(|error| format!("{stage}.module: {error}"))?;
    compiled.insert(digest, module.clone());
    Ok(module)
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
