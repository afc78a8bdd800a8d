//! Lookup of one stage's module: the source of its bytes, its compilation, and the check that it
//! fits the manifest.

use super::{KnownModules, MODULE_BYTES_MAX, PolicyFiles, outside};
use crate::builtin;
use crate::class::MEMORY_MB_MAX;
use crate::engine::Engine;
use crate::loaded::misfits;
use crate::module::Module;
use crate::reason::Reason;
use crate::worker::Checked;
use nova_model::artifact::{Digest, Manifest, ModuleSource, Stage};
use std::sync::Arc;

/// Code of a reason that may disappear without a change, because another policy may bring the
/// missing module.
pub const MODULE_MISSING: &str = "module_missing";

/// A stage's module with its bytes.
#[derive(Clone)]
pub struct Found {
    pub stage: Stage,
    pub module: Arc<Module>,
    pub bytes: Vec<u8>,
}

impl Found {
    pub fn new(
        engine: &Engine,
        known: &dyn KnownModules,
        files: &PolicyFiles,
        manifest: &Manifest,
        stage: Stage,
        checked: Option<&Checked>,
    ) -> Result<Self, Reason> {
        let bytes = find_bytes(known, files, stage, &manifest.stage(stage).module)
            .map_err(|message| Reason::new(MODULE_MISSING, stage, message))?;
        let module = load(engine, known, stage, &bytes, checked)?;
        Ok(Self {
            stage,
            module,
            bytes,
        })
    }

    /// Returns the reasons why the module cannot be this stage of this policy.
    pub fn misfits(&self, manifest: &Manifest) -> Vec<Reason> {
        let (stage, module) = (self.stage, &self.module);
        let mut reasons = misfits(stage, module, &manifest.stage(stage).params);
        reasons.extend(lacks_memory(stage, module, manifest.limits.memory_mb));
        reasons
    }

    pub fn params(&self, manifest: &Manifest) -> Vec<f64> {
        let values = &manifest.stage(self.stage).params;
        let declared = self.module.description.parameters.iter();
        declared
            .map(|p| values.get(&p.name).copied().unwrap_or(p.default))
            .collect()
    }
}

/// Returns a reason if the module's initial memory exceeds the policy's limit. Such a module
/// cannot be instantiated at all.
pub fn lacks_memory(stage: Stage, module: &Module, memory_mb: u32) -> Option<Reason> {
    let needed_mb = module.shape.memory_bytes.div_ceil(1 << 20);
    (needed_mb > memory_mb.into()).then(|| {
        // The doubled value leaves room for memory that the module allocates while it runs.
        let enough_mb = (2 * needed_mb).next_power_of_two().min(MEMORY_MB_MAX.into());
        let message = format!("{stage}.module: starts with {needed_mb} MiB of memory, but limits.memory_mb is {memory_mb}: set memory_mb = {enough_mb}");
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
        ModuleSource::File(name) => files.modules.get(name).cloned().ok_or_else(|| {
            format!("{stage}.module: there is no file `{name}` in the directory of policy.toml")
        }),
        ModuleSource::Published(digest) => known
            .bytes(*digest)
            .ok_or_else(|| format!("{stage}.module: no published policy has the module {digest}")),
        ModuleSource::Builtin(name) => builtin::module(name).map(<[u8]>::to_vec).ok_or_else(|| {
            let names = builtin::module_names().collect::<Vec<_>>().join(", ");
            format!("{stage}.module: there is no builtin `{name}`; choose one of {names}")
        }),
    }
}

fn load(
    engine: &Engine,
    known: &dyn KnownModules,
    stage: Stage,
    bytes: &[u8],
    checked: Option<&Checked>,
) -> Result<Arc<Module>, Reason> {
    if bytes.len() > MODULE_BYTES_MAX {
        let message = format!(
            "{stage}.module: {} bytes, but at most {MODULE_BYTES_MAX} are allowed; make the module smaller",
            bytes.len()
        );
        return Err(Reason::new("too_large", stage, message));
    }
    if let Some(module) = known.compiled(Digest::from_content(bytes)) {
        return Ok(module);
    }
    let loaded = match checked {
        Some(checked) => outside::load(engine, bytes, checked),
        None => engine.load_upload(bytes),
    };
    loaded
        .map(Arc::new)
        .map_err(|error| Reason::new(error.code(), stage, format!("{stage}.module: {error}")))
}
