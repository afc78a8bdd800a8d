//! Compiled modules, shared by every policy that uses them.

use super::DeployError;
use crate::policy::admission::{KnownModules, Refusal};
use crate::policy::artifact::Digest;
use crate::policy::engine::Engine;
use crate::policy::module::{Module, ModuleError};
use crate::policy::registry::Registry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What did not compile is not compiled again before this: the same bytes most likely fail again, and a core is busy for half a
/// minute to find out.
const REFUSED_FOR: Duration = Duration::from_secs(600);

/// Compiled modules by digest, for as long as a loaded policy uses them.
#[derive(Debug, Default, Clone)]
pub(super) struct CompiledModules {
    modules: Arc<Mutex<HashMap<Digest, Weak<Module>>>>,
    turns: Arc<Mutex<HashMap<Digest, Weak<Turn>>>>,
    refused: Arc<Mutex<HashMap<Digest, (Instant, String)>>>,
}

/// Held by whoever compiles a module.
type Turn = tokio::sync::Mutex<()>;

impl CompiledModules {
    pub fn get(&self, digest: Digest) -> Option<Arc<Module>> {
        self.modules.lock().ok()?.get(&digest)?.upgrade()
    }

    /// One for each module, so that none is compiled twice at once.
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

    /// Why it did not compile a while ago.
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

/// Where modules come from.
#[derive(Clone)]
pub(super) struct Modules {
    pub engine: Engine,
    pub registry: Arc<dyn Registry>,
    pub compiled: CompiledModules,
}

impl Modules {
    /// From memory, else from the registry, compiled. Whoever gives up waiting leaves the compilation to those who still
    /// do, and to the compile cache.
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
                Err(("the compiler panicked over it".to_owned(), true))
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

/// Whether the bytes are at fault, and not a host that was too busy to call them in time.
fn is_for_good(error: &ModuleError) -> bool {
    !matches!(error, ModuleError::Describe(_))
}

/// Modules that are compiled while older policies go on serving; held until a change takes them up.
#[derive(Debug, Default, Clone)]
pub(super) struct Late(Arc<Mutex<Loading>>);

#[derive(Debug, Default)]
struct Loading {
    /// The first one is being loaded.
    queue: VecDeque<Digest>,
    done: Vec<Arc<Module>>,
    /// Something was loaded since that was asked last.
    news: bool,
}

impl Late {
    /// Loads what of these is not in memory, in this order, after what is under way; calls `loaded` for each that is there.
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
                        tracing::warn!(module = %digest, %error, "cannot be loaded");
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

    /// Whether something was loaded since this was asked last.
    pub fn take_news(&self) -> bool {
        std::mem::take(&mut self.state().news)
    }

    pub fn is_under_way(&self) -> bool {
        !self.state().queue.is_empty()
    }

    /// Lets go of what was loaded, once it is in use or was not wanted after all.
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
