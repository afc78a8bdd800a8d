//! Admission: the checks that every policy must pass before it becomes a published version, from
//! an upload, the watched directory, the command line or the binary itself. A refusal lists all
//! reasons at once.

pub mod golden;
mod module_source;
mod outside;
pub mod trial;

pub use crate::files::PolicyFiles;
pub use crate::reason::{Reason, Refusal};
pub use module_source::MODULE_MISSING;

use crate::builtin;
use crate::class::{Class, MEMORY_MB_MAX};
use crate::engine::Engine;
use crate::loaded::{LoadedPolicy, resolve};
use crate::module::{Module, ModuleError};
use crate::signature::{MANIFEST_FILE, Proof, SIGNATURE_FILE, SUMS_FILE, TrustedKeys};
use golden::CANDIDATES_MAX;
use module_source::Found;
use nova_model::artifact::{Digest, Limits, Manifest, PerStage, Stage};
use nova_model::measured::{FUEL_PER_MS, Record, StageRecord};
use outside::Outside;
use std::sync::Arc;
use trial::Subject;

/// Maximum size of a component. A larger one is refused before it is compiled.
pub const MODULE_BYTES_MAX: usize = 48 << 20;
/// Maximum time that a feed request may wait for a policy.
pub const DEADLINE_MS_MAX: u32 = 1_000;

/// A policy that may be published.
#[derive(Debug, Clone)]
pub struct Admitted {
    pub loaded: Arc<LoadedPolicy>,
    pub module_bytes: Vec<(Digest, Vec<u8>)>,
    pub follow: bool,
    /// `None` if the same policy passed the trial before.
    pub record: Option<Record>,
}

/// Source of facts about modules and policies that were published before.
pub trait KnownModules: Send + Sync {
    /// Returns a module that is compiled already.
    fn compiled(&self, digest: Digest) -> Option<Arc<Module>>;
    /// Returns the bytes of a module in the registry.
    fn bytes(&self, digest: Digest) -> Option<Vec<u8>>;
    /// Reports if a policy with this digest passed the trial on the golden sets already.
    /// Policies with equal behaviour get equal verdicts.
    fn is_tried(&self, policy: Digest) -> bool;
}

/// [`KnownModules`] without published modules, used on an author's machine and in benchmarks.
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

/// Checks a policy and compiles it. Blocks during the compilation, so call it outside the async
/// runtime and outside the serving path.
///
/// # Errors
/// Returns every reason why the policy cannot be published.
pub fn admit(
    engine: &Engine,
    known: &dyn KnownModules,
    files: &PolicyFiles,
) -> Result<Admitted, Refusal> {
    admit_while(engine, known, files, &|| true)
}

/// Does the same as [`admit`]. Gives up when `wanted` returns false, if the engine has a worker.
///
/// # Errors
/// Returns every reason why the policy cannot be published.
pub fn admit_while(
    engine: &Engine,
    known: &dyn KnownModules,
    files: &PolicyFiles,
    wanted: &dyn Fn() -> bool,
) -> Result<Admitted, Refusal> {
    let mut manifest = Manifest::parse(&files.manifest).map_err(|message| Refusal {
        reasons: vec![Reason::whole("manifest", message)],
    })?;
    let mut reasons = check_limits(&manifest);
    if !reasons.is_empty() {
        // The limits are refused. The rest is checked with the default limits, so that all
        // reasons are found at once.
        manifest.limits = Limits::default();
    }
    let outside = Outside::new(engine, known, files, &manifest, wanted);
    let checked = match &outside {
        Some(outside) if outside.must_compile() => Some(outside.check()?),
        _ => None,
    };
    let (mut found, mut sound) = (Vec::new(), Vec::new());
    for stage in Stage::ALL {
        match Found::new(engine, known, files, &manifest, stage, checked.as_ref()) {
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
    let proof = Proof::from_files(files);
    if let Some(reason) = unsigned(
        engine.trusted_keys(),
        proof.as_ref(),
        policy.as_ref(),
        files,
    ) {
        reasons.push(reason);
    }
    let record = match &policy {
        Some(policy) if known.is_tried(policy.digest) => None,
        _ => Some(match (checked, &outside) {
            (Some(checked), _) => checked.record,
            (None, Some(outside)) => outside.check()?.record,
            (None, None) => try_all(engine, &manifest, &sound, &mut reasons),
        }),
    };
    match policy {
        Some(mut loaded) if reasons.is_empty() => {
            let modules = found.into_iter();
            let mut module_bytes: Vec<_> = modules
                .map(|found| (found.module.digest, found.bytes))
                .collect();
            if let Some(proof) = proof {
                let bytes = proof.to_bytes();
                loaded.spec.signature = Some(Digest::from_content(&bytes));
                module_bytes.push((Digest::from_content(&bytes), bytes));
            }
            Ok(Admitted {
                loaded: Arc::new(loaded),
                module_bytes,
                follow: manifest.follow,
                record,
            })
        }
        _ => Err(Refusal { reasons }),
    }
}

/// Returns the reason why the signature is missing or invalid, if a signature is required.
/// Policies that this binary bundles need none.
fn unsigned(
    keys: &TrustedKeys,
    proof: Option<&Proof>,
    policy: Option<&LoadedPolicy>,
    files: &PolicyFiles,
) -> Option<Reason> {
    if keys.is_empty() || builtin::recipes().any(|bundled| bundled == *files) {
        return None;
    }
    let Some(proof) = proof else {
        let message = format!(
            "not signed, but this host requires a signature; run: sha256sum {MANIFEST_FILE} *.wasm > {SUMS_FILE} && minisign -Sm {SUMS_FILE}, then send {SUMS_FILE} and {SIGNATURE_FILE} together with the policy"
        );
        return Some(Reason::whole("signature", message));
    };
    let policy = policy?;
    let proved = proof.proves(keys, &policy.spec, &policy.modules);
    proved
        .err()
        .map(|message| Reason::whole("signature", message))
}

/// Checks one module with the default parameters and limits, as any policy might use it.
///
/// # Errors
/// Returns every reason why no policy with this module can be published.
pub fn admit_module(engine: &Engine, bytes: &[u8]) -> Result<(Module, StageRecord), Refusal> {
    let refused = |error: ModuleError| Refusal {
        reasons: vec![Reason::whole(error.code(), error.to_string())],
    };
    if let Some(worker) = engine.worker() {
        let mut checked = outside::check_module(engine, worker, bytes)?;
        let module = outside::load(engine, bytes, &checked).map_err(refused)?;
        let record = std::mem::take(checked.record.stages.get_mut(module.stage));
        return Ok((module, record));
    }
    let module = engine.load_upload(bytes).map_err(refused)?;
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

/// Binds the modules to a policy. Returns `None` if there are reasons for a refusal.
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
    let spec = resolve(manifest, &modules).without_negative_zero();
    LoadedPolicy::bind(spec.digest(), spec, modules)
        .map(Some)
        .map_err(|reasons| Refusal { reasons })
}

/// Tries every stage that could be bound, even if another stage could not, so that the author
/// learns all reasons at once.
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

/// Returns the reason for a refusal if the policy needs more than its deadline. The fuel limit
/// refuses what would be too slow on every machine. The clock refuses what is too slow on this
/// one: the best of several calls must exceed the deadline by a factor of two, so that a busy
/// machine is no reason for a refusal.
fn misses_deadline(record: &Record, deadline_ms: u32) -> Option<Reason> {
    const CLOCK_TOLERANCE: u64 = 2;
    let times = Stage::ALL.iter().map(|stage| record.stage(*stage).time_us);
    let took_ms = times.sum::<u64>().div_ceil(1_000);
    let message = if record.fuel > record.fuel_allowed {
        format!(
            "the stages use {} fuel for {CANDIDATES_MAX} candidates, but limits.deadline_ms = {deadline_ms} allows at most {}: do less work, or raise it to {}",
            record.fuel,
            record.fuel_allowed,
            record.fuel.div_ceil(FUEL_PER_MS)
        )
    } else if took_ms > CLOCK_TOLERANCE * u64::from(deadline_ms) {
        format!(
            "the stages took {took_ms} ms for {CANDIDATES_MAX} candidates in their best run, but limits.deadline_ms is {deadline_ms}: do less work, or raise it"
        )
    } else {
        return None;
    };
    Some(Reason::whole("deadline", message))
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
