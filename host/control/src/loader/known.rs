//! Facts that admission takes as given, and the admission of bundled policies.

use super::Loader;
use super::compiled::CompiledModules;
use super::error::LoadError;
use super::modules::Modules;
use nova_model::artifact::{Digest, Manifest, ModuleSource, Stage};
use nova_policy::admission::{Admitted, KnownModules, PolicyFiles, Refusal, admit};
use nova_policy::module::Module;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub struct Known {
    compiled: CompiledModules,
    /// Modules that a manifest names by digest.
    bytes: HashMap<Digest, Vec<u8>>,
    tried: Tried,
}

/// Policies that need no further trial.
pub enum Tried {
    /// The policy at hand, because it is bundled with the binary and the binary's tests try it.
    Bundled,
    /// The published policies.
    Digests(HashSet<Digest>),
}

impl KnownModules for Known {
    fn compiled(&self, digest: Digest) -> Option<Arc<Module>> {
        self.compiled.get(digest)
    }

    fn bytes(&self, digest: Digest) -> Option<Vec<u8>> {
        self.bytes.get(&digest).cloned()
    }

    fn is_tried(&self, policy: Digest) -> bool {
        match &self.tried {
            Tried::Bundled => true,
            Tried::Digests(digests) => digests.contains(&policy),
        }
    }
}

impl Loader {
    pub fn known(&self, bytes: HashMap<Digest, Vec<u8>>, tried: Tried) -> Known {
        Known {
            compiled: self.modules.compiled.clone(),
            bytes,
            tried,
        }
    }

    /// Returns the published modules that a manifest names by digest.
    pub async fn published_bytes(
        &self,
        files: &PolicyFiles,
    ) -> Result<HashMap<Digest, Vec<u8>>, LoadError> {
        let mut bytes = HashMap::new();
        // Admission refuses a manifest that cannot be read, so this ignores it.
        let Ok(manifest) = Manifest::parse(&files.manifest) else {
            return Ok(bytes);
        };
        for stage in Stage::ALL {
            if let ModuleSource::Published(digest) = manifest.stage(stage).module
                && let Some(module) = self.modules.registry.module(digest).await?
            {
                bytes.insert(digest, module);
            }
        }
        Ok(bytes)
    }

    /// Makes the modules of an admitted policy known, so that its publication compiles none.
    pub fn keep(&self, admitted: &Admitted) {
        keep(&self.modules.compiled, admitted);
    }

    pub async fn admit_bundled(&self, files: PolicyFiles) -> anyhow::Result<Admitted> {
        admit_bundled(&self.modules, files).await
    }
}

/// Admits a policy that is bundled with this binary.
pub async fn admit_bundled(modules: &Modules, files: PolicyFiles) -> anyhow::Result<Admitted> {
    let (engine, compiled) = (modules.engine.clone(), modules.compiled.clone());
    let admitted = tokio::task::spawn_blocking(move || {
        let known = Known {
            compiled: compiled.clone(),
            bytes: HashMap::new(),
            tried: Tried::Bundled,
        };
        let admitted = admit(&engine, &known, &files)?;
        keep(&compiled, &admitted);
        Ok::<_, Refusal>(admitted)
    });
    Ok(admitted.await??)
}

fn keep(compiled: &CompiledModules, admitted: &Admitted) {
    for stage in Stage::ALL {
        compiled.keep(admitted.loaded.modules.get(stage));
    }
}
