//! Compiled modules, shared by every policy that uses them.

use super::DeployError;
use crate::policy::admission::{KnownModules, Refusal};
use crate::policy::artifact::Digest;
use crate::policy::engine::Engine;
use crate::policy::module::Module;
use crate::policy::registry::Registry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

/// Compiled modules by digest, for as long as a loaded policy uses them.
#[derive(Debug, Default, Clone)]
pub(super) struct CompiledModules(Arc<Mutex<HashMap<Digest, Weak<Module>>>>);

impl CompiledModules {
    pub fn get(&self, digest: Digest) -> Option<Arc<Module>> {
        self.0.lock().ok()?.get(&digest)?.upgrade()
    }

    pub fn keep(&self, module: &Arc<Module>) {
        if let Ok(mut modules) = self.0.lock() {
            modules.retain(|_, module| module.strong_count() > 0);
            modules.insert(module.digest, Arc::downgrade(module));
        }
    }
}

/// Where modules come from.
#[derive(Clone)]
pub(super) struct Modules {
    pub engine: Engine,
    pub registry: Arc<dyn Registry>,
    pub compiled: CompiledModules,
}

impl Modules {
    /// From memory, else from the registry, compiled.
    pub async fn module(&self, digest: Digest) -> Result<Arc<Module>, DeployError> {
        if let Some(module) = self.compiled.get(digest) {
            return Ok(module);
        }
        let bytes = self.registry.module(digest).await?;
        let bytes = bytes
            .ok_or_else(|| DeployError::NotFound(format!("the registry has no module {digest}")))?;
        let engine = self.engine.clone();
        let module = tokio::task::spawn_blocking(move || engine.load(&bytes))
            .await
            .map_err(|error| DeployError::Unavailable(error.into()))?
            .map_err(|error| DeployError::Refused(Refusal::one(error.to_string())))?;
        let module = Arc::new(module);
        self.compiled.keep(&module);
        Ok(module)
    }
}

/// Modules that are compiled while older policies go on serving; held until a change takes them up.
#[derive(Debug, Default)]
pub(super) struct Late(Arc<Mutex<Loading>>);

#[derive(Debug, Default)]
enum Loading {
    #[default]
    Nothing,
    /// What else is wanted meanwhile is found to be missing when this is taken up.
    UnderWay,
    Done(Vec<Arc<Module>>),
}

impl Late {
    /// Begins, unless something is loading already; calls `done` when all are there that can be had.
    pub fn load(&self, from: &Modules, digests: HashSet<Digest>, done: Arc<Notify>) {
        {
            let mut state = self.state();
            if !matches!(*state, Loading::Nothing) {
                return;
            }
            *state = Loading::UnderWay;
        }
        let (from, state) = (from.clone(), self.0.clone());
        tokio::spawn(async move {
            let mut modules = Vec::new();
            for digest in digests {
                match from.module(digest).await {
                    Ok(module) => modules.push(module),
                    Err(error) => tracing::warn!(module = %digest, %error, "cannot be loaded"),
                }
            }
            *state.lock().unwrap_or_else(PoisonError::into_inner) = Loading::Done(modules);
            done.notify_one();
        });
    }

    /// Whether something can be taken up.
    pub fn is_done(&self) -> bool {
        matches!(*self.state(), Loading::Done(_))
    }

    /// What was loaded, to be held until it is in use.
    pub fn take(&self) -> Vec<Arc<Module>> {
        let mut state = self.state();
        match std::mem::take(&mut *state) {
            Loading::Done(modules) => modules,
            other => {
                *state = other;
                Vec::new()
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, Loading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What admission may take as given.
pub(super) struct Known {
    pub compiled: CompiledModules,
    pub bytes: HashMap<Digest, Vec<u8>>,
    pub tried: Tried,
}

/// Which policies need no trial any more.
pub(super) enum Tried {
    /// This one: the binary ships it, and its tests tried it.
    Shipped,
    /// Those that are published.
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
            Tried::Shipped => true,
            Tried::Digests(digests) => digests.contains(&policy),
        }
    }
}
