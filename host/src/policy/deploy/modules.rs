//! Compiled modules, shared by every policy that uses them.

use crate::policy::admission::KnownModules;
use crate::policy::artifact::Digest;
use crate::policy::module::Module;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, Weak};

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
