//! Source of compiled modules: memory, then the registry.

use super::compiled::CompiledModules;
use super::error::LoadError;
use nova_model::artifact::Digest;
use nova_policy::admission::Refusal;
use nova_policy::engine::Engine;
use nova_policy::module::{Module, ModuleError};
use nova_stores::ports::registry::Registry;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub struct Modules {
    pub engine: Engine,
    pub registry: Arc<dyn Registry>,
    pub compiled: CompiledModules,
}

impl Modules {
    /// Returns a compiled module from memory, or fetches it from the registry and compiles it.
    /// If the caller stops waiting, the compilation continues, for other callers and for the
    /// compile cache.
    pub async fn module(&self, digest: Digest) -> Result<Arc<Module>, LoadError> {
        if let Some(module) = self.compiled.get(digest) {
            return Ok(module);
        }
        let from = self.clone();
        tokio::spawn(async move { from.compile(digest).await })
            .await
            .map_err(|error| LoadError::Unavailable(error.into()))?
    }

    async fn compile(&self, digest: Digest) -> Result<Arc<Module>, LoadError> {
        let lock = self.compiled.compile_lock(digest);
        let _compiling = lock.lock().await;
        if let Some(module) = self.compiled.get(digest) {
            return Ok(module);
        }
        let refused = |reason: String| LoadError::Refused(Refusal::one(reason));
        if let Some(reason) = self.compiled.refusal(digest) {
            return Err(refused(reason));
        }
        let bytes = self.registry.module(digest).await?;
        let bytes = bytes
            .ok_or_else(|| LoadError::NotFound(format!("the registry has no module {digest}")))?;
        let engine = self.engine.clone();
        let loaded = match tokio::task::spawn_blocking(move || engine.load(&bytes)).await {
            Ok(loaded) => loaded.map_err(|error| (error.to_string(), is_for_good(&error))),
            Err(panic) if panic.is_panic() => {
                Err(("the compiler panicked on this module".to_owned(), true))
            }
            Err(stopping) => return Err(LoadError::Unavailable(stopping.into())),
        };
        let module = loaded.map_err(|(reason, for_good)| {
            if for_good {
                self.compiled.refuse(digest, &reason);
            }
            refused(reason)
        })?;
        let module = Arc::new(module);
        self.compiled.keep(&module);
        Ok(module)
    }
}

/// Reports if the module's bytes are the cause. A failed `describe` call does not count, because
/// the host may only have been too busy to call it in time.
fn is_for_good(error: &ModuleError) -> bool {
    !matches!(error, ModuleError::Describe(_))
}
