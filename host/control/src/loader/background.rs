//! Compilations in the background, of policies that a change did not wait for.

use super::modules::Modules;
use nova_model::artifact::Digest;
use nova_policy::module::Module;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Modules that are compiled in the background while older policies serve. They are held until a
/// change uses them.
#[derive(Debug, Default, Clone)]
pub struct BackgroundCompiles {
    compiles: Arc<Mutex<Compiles>>,
    compiled: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Compiles {
    /// The first one is being compiled.
    queue: VecDeque<Digest>,
    done: Vec<Arc<Module>>,
    /// True if a module was compiled since the last call to [`BackgroundCompiles::take_news`].
    news: bool,
}

impl BackgroundCompiles {
    /// Compiles those of the given modules that are not in memory, in this order, after those
    /// that are queued already.
    pub fn start(&self, from: &Modules, digests: [Digest; 3]) {
        if self.enqueue(from, digests) {
            tokio::spawn(self.clone().run(from.clone()));
        }
    }

    /// Returns true if the queue was empty before and is not any more.
    fn enqueue(&self, from: &Modules, digests: [Digest; 3]) -> bool {
        let mut compiles = self.compiles();
        let was_empty = compiles.queue.is_empty();
        for digest in digests {
            if from.is_worth_compiling(digest) && !compiles.queue.contains(&digest) {
                compiles.queue.push_back(digest);
            }
        }
        was_empty && !compiles.queue.is_empty()
    }

    async fn run(self, from: Modules) {
        while let Some(digest) = self.first() {
            let module = from.module(digest).await;
            let mut compiles = self.compiles();
            compiles.queue.pop_front();
            match module {
                Ok(module) => {
                    compiles.done.push(module);
                    compiles.news = true;
                    self.compiled.notify_one();
                }
                Err(error) => {
                    tracing::warn!(module = %digest, %error, "could not load a module in the background; policies that use it stay out of service");
                }
            }
        }
    }

    fn first(&self) -> Option<Digest> {
        self.compiles().queue.front().copied()
    }

    pub fn has(&self, digest: Digest) -> bool {
        self.compiles().queue.contains(&digest)
    }

    /// Returns when a module was compiled.
    pub async fn compiled(&self) {
        self.compiled.notified().await;
    }

    /// Reports if a module was compiled since the last call.
    pub fn take_news(&self) -> bool {
        std::mem::take(&mut self.compiles().news)
    }

    pub fn is_under_way(&self) -> bool {
        !self.compiles().queue.is_empty()
    }

    /// Releases the compiled modules if no compilation is queued. By then a policy uses them, or
    /// they are not needed.
    pub fn release(&self) {
        let mut compiles = self.compiles();
        if compiles.queue.is_empty() {
            compiles.done.clear();
        }
    }

    fn compiles(&self) -> MutexGuard<'_, Compiles> {
        self.compiles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
