//! Deletions and restorations of posts across hosts. CDC events of this host apply here at once
//! and are published to all other hosts; those published by other hosts are applied here.

use crate::app::App;
use futures::StreamExt as _;
use nova_model::deleted::Fate;
use nova_model::time::UnixMs;
use nova_stores::redis::tombstones::Tombstones;
use nova_support::clock::unix_ms;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Pause between two attempts to publish to Redis.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// Largest number of pending tombstones. More than a host remembers would be published in vain.
const WAITING_MAX: usize = 200_000;

/// Pending tombstones: the latest deletion state of each post that is not yet published to
/// Redis. A Redis outage must neither delay the CDC consumer nor let a deleted post reappear.
#[derive(Debug, Clone, Default)]
pub(super) struct Untold {
    fates: Arc<Mutex<HashMap<u64, Fate>>>,
    grown: Arc<Notify>,
}

impl Untold {
    /// Applies deletion states on this host at once, and publishes them to other hosts as soon
    /// as Redis is available.
    pub fn bury(&self, app: &App, fates: Vec<Fate>) {
        let now_ms = unix_ms();
        settle(
            app,
            fates
                .iter()
                .map(|fate| (fate.post_id, fate.deleted, now_ms)),
        );
        self.keep(fates);
        self.grown.notify_one();
    }

    /// Keeps deletion states for publication. If a post has several, the latest one is
    /// published.
    fn keep(&self, fates: Vec<Fate>) {
        let mut untold = self.fates();
        for fate in fates {
            if untold.len() >= WAITING_MAX && !untold.contains_key(&fate.post_id) {
                continue;
            }
            let known = untold.entry(fate.post_id).or_insert(fate);
            if known.version <= fate.version {
                *known = fate;
            }
        }
    }

    fn fates(&self) -> MutexGuard<'_, HashMap<u64, Fate>> {
        self.fates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes pending tombstones until the host stops, and then once more.
    pub fn tell(&self, tombstones: Tombstones, stop: CancellationToken) -> JoinHandle<()> {
        let untold = self.clone();
        tokio::spawn(async move {
            let mut failing = false;
            loop {
                tokio::select! {
                    () = untold.grown.notified() => {}
                    () = stop.cancelled() => {}
                }
                let stopping = stop.is_cancelled();
                let fates: Vec<Fate> = untold.fates().drain().map(|(_, fate)| fate).collect();
                match tombstones.tell(&fates).await {
                    Ok(()) => failing = false,
                    Err(error) => {
                        // Logged once per outage and not once per second.
                        if !failing || stopping {
                            tracing::warn!(%error, posts = fates.len(), "could not publish deleted posts; other hosts may still show them");
                        }
                        failing = true;
                        untold.keep(fates);
                        if !stopping {
                            tokio::time::sleep(RETRY_WAIT).await;
                            untold.grown.notify_one();
                        }
                    }
                }
                if stopping {
                    return;
                }
            }
        })
    }
}

/// Applies deletions captured by any host to this host's responses.
pub(super) async fn follow(app: Arc<App>, tombstones: Tombstones) {
    let mut told = Box::pin(tombstones.follow());
    while let Some(news) = told.next().await {
        settle(
            &app,
            news.iter()
                .map(|told| (told.post_id, told.deleted, told.at_ms)),
        );
    }
}

/// Applies deletion states in order, because a post may have been deleted and restored. All of
/// them are applied in one step, because each change copies the whole set.
fn settle(app: &App, fates: impl Iterator<Item = (u64, bool, UnixMs)>) {
    let mut latest = HashMap::new();
    for (post, deleted, at_ms) in fates {
        latest.insert(post, (deleted, at_ms));
    }
    let (mut gone, mut back) = (Vec::new(), Vec::new());
    for (post, (deleted, at_ms)) in latest {
        if deleted {
            gone.push((post, at_ms));
        } else {
            back.push(post);
        }
    }
    app.feed.deleted.add(&gone, unix_ms());
    app.feed.deleted.remove(&back);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_state_of_each_post_is_pending() {
        let untold = Untold::default();
        let fate = |post_id, version, deleted| Fate {
            post_id,
            version,
            deleted,
        };
        untold.keep(vec![fate(1, 5, true), fate(2, 1, true), fate(1, 6, false)]);
        // A failed attempt puts back states that may be outdated by now.
        untold.keep(vec![fate(1, 4, true)]);
        let fates = untold.fates();
        assert_eq!(fates.get(&1), Some(&fate(1, 6, false)));
        assert_eq!(fates.len(), 2);
    }
}
