//! Loads in the background, of policies that should serve and are not in memory. Nothing waits for
//! them: what is in memory serves, and each policy serves as soon as it is loaded. Each is loaded
//! in a task of its own, so that a module that cannot be read delays no other policy.

use super::error::LoadError;
use super::{Key, Loader, Need};
use nova_policy::loaded::LoadedPolicy;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// Pause before the second attempt to load a policy whose modules the registry did not return. It
/// doubles with each attempt.
const RETRY_WAIT_MIN: Duration = Duration::from_secs(1);
/// Longest pause, and the pause after a policy was refused.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct BackgroundLoads {
    loads: Mutex<HashMap<Key, Load>>,
    loaded: Notify,
    /// True if a policy was loaded since the last call of [`BackgroundLoads::take_news`].
    news: AtomicBool,
}

#[derive(Debug)]
enum Load {
    UnderWay {
        _task: AbortOnDropHandle<()>,
    },
    /// The policy is held until a swap used it.
    Done {
        _policy: Arc<LoadedPolicy>,
    },
}

impl BackgroundLoads {
    /// Returns when a policy was loaded.
    pub async fn loaded(&self) {
        self.loaded.notified().await;
    }

    /// Reports if a policy was loaded since the last call.
    pub fn take_news(&self) -> bool {
        self.news.swap(false, Ordering::AcqRel)
    }

    #[cfg(test)]
    pub fn is_under_way(&self) -> bool {
        let loads = self.locked();
        loads
            .values()
            .any(|load| matches!(load, Load::UnderWay { .. }))
    }

    fn done(&self, key: &Key, policy: Arc<LoadedPolicy>) {
        if let Some(load) = self.locked().get_mut(key) {
            *load = Load::Done { _policy: policy };
            self.news.store(true, Ordering::Release);
            self.loaded.notify_one();
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Key, Load>> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loader {
    /// Loads these policies in the background, and no others any more. The caller passes all that
    /// should serve and were not in memory.
    pub fn want(self: &Arc<Self>, missing: Vec<Need>) {
        let mut loads = self.background.locked();
        loads.retain(|key, _| missing.iter().any(|need| need.key == *key));
        for need in missing {
            let from = Arc::downgrade(self);
            loads.entry(need.key.clone()).or_insert_with(|| {
                let task = tokio::spawn(load_until_done(from, need));
                Load::UnderWay {
                    _task: AbortOnDropHandle::new(task),
                }
            });
        }
    }
}

async fn load_until_done(from: Weak<Loader>, need: Need) {
    let mut pause = RETRY_WAIT_MIN;
    loop {
        let Some(loader) = from.upgrade() else {
            return;
        };
        match loader.load_needed(&need).await {
            Ok(policy) => return loader.background.done(&need.key, policy),
            Err(error) => {
                if !matches!(error, LoadError::Unavailable(_)) {
                    pause = RETRY_WAIT_MAX;
                }
                tracing::error!(
                    policy = %need.key.0,
                    %error,
                    retry_after_s = pause.as_secs(),
                    "could not load a policy in the background; serving without it, and trying again"
                );
            }
        }
        drop(loader);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_WAIT_MAX);
    }
}
