//! Compiled modules in memory, shared by all policies that use them.

use nova_model::artifact::Digest;
use nova_policy::module::Module;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Time during which a module that did not compile is not compiled again. The same bytes would
/// most likely fail again, and finding out keeps a core busy for half a minute.
const REFUSED_FOR: Duration = Duration::from_secs(600);

/// Compiled modules by digest. A module stays in memory while a loaded policy uses it.
#[derive(Debug, Default, Clone)]
pub struct CompiledModules {
    modules: Arc<Mutex<HashMap<Digest, Weak<Module>>>>,
    compile_locks: Arc<Mutex<HashMap<Digest, Weak<CompileLock>>>>,
    refused: Arc<Mutex<HashMap<Digest, (Instant, String)>>>,
}

/// Lock held while one module is fetched and compiled.
pub type CompileLock = tokio::sync::Mutex<()>;

impl CompiledModules {
    pub fn get(&self, digest: Digest) -> Option<Arc<Module>> {
        self.modules.lock().ok()?.get(&digest)?.upgrade()
    }

    pub fn keep(&self, module: &Arc<Module>) {
        if let Ok(mut modules) = self.modules.lock() {
            modules.retain(|_, module| module.strong_count() > 0);
            modules.insert(module.digest, Arc::downgrade(module));
        }
    }

    /// Returns the lock of one module, so that no module is compiled twice at the same time.
    pub fn compile_lock(&self, digest: Digest) -> Arc<CompileLock> {
        let locks = self.compile_locks.lock();
        let mut locks = locks.unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(&digest).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(digest, Arc::downgrade(&lock));
        lock
    }

    /// Returns the reason why the module did not compile recently, if it did not.
    pub fn refusal(&self, digest: Digest) -> Option<String> {
        let mut refused = self.refused.lock().ok()?;
        refused.retain(|_, (at, _)| at.elapsed() < REFUSED_FOR);
        refused.get(&digest).map(|(_, reason)| reason.clone())
    }

    pub fn refuse(&self, digest: Digest, reason: &str) {
        if let Ok(mut refused) = self.refused.lock() {
            refused.insert(digest, (Instant::now(), reason.to_owned()));
        }
    }
}
