//! Compiled modules, shared by all policies that use them.

use super::DeployError;
use nova_model::artifact::Digest;
use nova_policy::admission::{KnownModules, Refusal};
use nova_policy::engine::Engine;
use nova_policy::module::{Module, ModuleError};
use nova_stores::ports::registry::Registry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Time during which a module that did not compile is not compiled again. The same bytes would
/// most likely fail again, and finding out keeps a core busy for half a minute.
const REFUSED_FOR: Duration = Duration::from_secs(600);

/// Compiled modules by digest. A module stays in memory while a loaded policy uses it.
#[derive(Debug, Default, Clone)]
pub(super) struct CompiledModules {
    modules: Arc<Mutex<HashMap<Digest, Weak<Module>>>>,
    turns: Arc<Mutex<HashMap<Digest, Weak<Turn>>>>,
    refused: Arc<Mutex<HashMap<Digest, (Instant, String)>>>,
}

/// Lock held while a module is compiled.
type Turn = tokio::sync::Mutex<()>;

impl CompiledModules {
    pub fn get(&self, digest: Digest) -> Option<Arc<Module>> {
        self.modules.lock().ok()?.get(&digest)?.upgrade()
    }

    /// Returns the lock of one module, so that no module is compiled twice at the same time.
    fn turn(&self, digest: Digest) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(&digest).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(digest, Arc::downgrade(&turn));
        turn
    }

    pub fn keep(&self, module: &Arc<Module>) {
        if let Ok(mut modules) = self.modules.lock() {
            modules.retain(|_, module| module.strong_count() > 0);
            modules.insert(module.digest, Arc::downgrade(module));
        }
    }

    /// Returns the reason why the module did not compile recently, if it did not.
    fn refusal(&self, digest: Digest) -> Option<String> {
        let mut refused = self.refused.lock().ok()?;
        refused.retain(|_, (at, _)| at.elapsed() < REFUSED_FOR);
        refused.get(&digest).map(|(_, reason)| reason.clone())
    }

    fn refuse(&self, digest: Digest, reason: &str) {
        if let Ok(mut refused) = self.refused.lock() {
            refused.insert(digest, (Instant::now(), reason.to_owned()));
        }
    }
}

/// Source of compiled modules: memory, then the registry.
#[derive(Clone)]
pub(super) struct Modules {
    pub engine: Engine,
    pub registry: Arc<dyn Registry>,
    pub compiled: CompiledModules,
}

impl Modules {
    /// Returns a compiled module from memory, or fetches it from the registry and compiles it.
    /// If the caller stops waiting, the compilation continues, for other callers and for the
    /// compile cache.
    pub async fn module(&self, digest: Digest) -> Result<Arc<Module>, DeployError> {
        if let Some(module) = self.compiled.get(digest) {
            return Ok(module);
        }
        let from = self.clone();
        tokio::spawn(async move { from.compile(digest).await })
            .await
            .map_err(|error| DeployError::Unavailable(error.into()))?
    }

    async fn compile(&self, digest: Digest) -> Result<Arc<Module>, DeployError> {
        let turn = self.compiled.turn(digest);
        let _turn = turn.lock().await;
        if let Some(module) = self.compiled.get(digest) {
            return Ok(module);
        }
        let refused = |reason: String| DeployError::Refused(Refusal::one(reason));
        if let Some(reason) = self.compiled.refusal(digest) {
            return Err(refused(reason));
        }
        let bytes = self.registry.module(digest).await?;
        let bytes = bytes
            .ok_or_else(|| DeployError::NotFound(format!("the registry has no module {digest}")))?;
        let engine = self.engine.clone();
        let loaded = match tokio::task::spawn_blocking(move || engine.load(&bytes)).await {
            Ok(loaded) => loaded.map_err(|error| (error.to_string(), is_for_good(&error))),
            Err(panic) if panic.is_panic() => {
                Err(("the compiler panicked on this module".to_owned(), true))
            }
            Err(stopping) => return Err(DeployError::Unavailable(stopping.into())),
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

/// Modules that are compiled in the background while older policies serve. They are held until a
/// change uses them.
#[derive(Debug, Default, Clone)]
pub(super) struct Late(Arc<Mutex<Loading>>);

#[derive(Debug, Default)]
struct Loading {
    /// The first one is being loaded.
    queue: VecDeque<Digest>,
    done: Vec<Arc<Module>>,
    /// True if a module was loaded since the last call to [`Late::take_news`].
    news: bool,
}

impl Late {
    /// Loads those of the given modules that are not in memory, in this order, after the loads
    /// that are queued already. Notifies `loaded` after each module that loads.
    pub fn load(&self, from: &Modules, digests: [Digest; 3], loaded: Arc<Notify>) {
        let idle = {
            let mut state = self.state();
            let idle = state.queue.is_empty();
            for digest in digests {
                let is_missing =
                    from.compiled.get(digest).is_none() && from.compiled.refusal(digest).is_none();
                if is_missing && !state.queue.contains(&digest) {
                    state.queue.push_back(digest);
                }
            }
            idle && !state.queue.is_empty()
        };
        if !idle {
            return;
        }
        let (from, late) = (from.clone(), self.clone());
        tokio::spawn(async move {
            while let Some(digest) = late.first() {
                let module = from.module(digest).await;
                let mut state = late.state();
                state.queue.pop_front();
                match module {
                    Ok(module) => {
                        state.done.push(module);
                        state.news = true;
                        loaded.notify_one();
                    }
                    Err(error) => {
                        tracing::warn!(module = %digest, %error, "could not load a module in the background; policies that use it stay out of service");
                    }
                }
            }
        });
    }

    fn first(&self) -> Option<Digest> {
        self.state().queue.front().copied()
    }

    pub fn has(&self, digest: Digest) -> bool {
        self.state().queue.contains(&digest)
    }

    /// Reports if a module was loaded since the last call.
    pub fn take_news(&self) -> bool {
        std::mem::take(&mut self.state().news)
    }

    pub fn is_under_way(&self) -> bool {
        !self.state().queue.is_empty()
    }

    /// Releases the loaded modules if no load is queued. By then a policy uses them, or they are
    /// not needed.
    pub fn release(&self) {
        let mut state = self.state();
        if state.queue.is_empty() {
            state.done.clear();
        }
    }

    fn state(&self) -> MutexGuard<'_, Loading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Facts that admission takes as given.
pub(super) struct Known {
    pub compiled: CompiledModules,
    pub bytes: HashMap<Digest, Vec<u8>>,
    pub tried: Tried,
}

/// Policies that need no further trial.
pub(super) enum Tried {
    /// The policy at hand, because it is bundled with the binary and the binary's tests try it.
    Shipped,
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
            Tried::Shipped => true,
            Tried::Digests(digests) => digests.contains(&policy),
        }
    }
}
