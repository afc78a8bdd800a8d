//! Deletions and restorations of posts across hosts. CDC events of this host apply here at once
//! and are published to all other hosts; those published by other hosts are applied here.

use crate::app::App;
use futures::StreamExt as _;
use nova_model::deleted::Tombstone;
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
pub(super) struct PendingTombstones {
    tombstones: Arc<Mutex<HashMap<u64, Tombstone>>>,
    grown: Arc<Notify>,
}

impl PendingTombstones {
    /// Applies deletion states on this host at once, and publishes them to other hosts as soon
    /// as Redis is available.
    pub fn record(&self, app: &App, tombstones: Vec<Tombstone>) {
        let now_ms = unix_ms();
        apply(
            app,
            tombstones
                .iter()
                .map(|tombstone| (tombstone.post_id, tombstone.deleted, now_ms)),
        );
        self.keep(tombstones);
        self.grown.notify_one();
    }

    /// Keeps deletion states for publication. If a post has several, the latest one is
    /// published.
    fn keep(&self, tombstones: Vec<Tombstone>) {
        let mut pending = self.tombstones();
        for tombstone in tombstones {
            if pending.len() >= WAITING_MAX && !pending.contains_key(&tombstone.post_id) {
                continue;
            }
            let known = pending.entry(tombstone.post_id).or_insert(tombstone);
            if known.version <= tombstone.version {
                *known = tombstone;
            }
        }
    }

    fn tombstones(&self) -> MutexGuard<'_, HashMap<u64, Tombstone>> {
        self.tombstones
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes pending tombstones until the host stops, and then once more.
    pub fn publish(&self, shared: Tombstones, stop: CancellationToken) -> JoinHandle<()> {
        let pending = self.clone();
        tokio::spawn(async move {
            let mut failing = false;
            loop {
                tokio::select! {
                    () = pending.grown.notified() => {}
                    () = stop.cancelled() => {}
                }
                let stopping = stop.is_cancelled();
                let tombstones: Vec<Tombstone> = pending
                    .tombstones()
                    .drain()
                    .map(|(_, tombstone)| tombstone)
                    .collect();
                match shared.publish(&tombstones).await {
                    Ok(()) => failing = false,
                    Err(error) => {
                        // Logged once per outage and not once per second.
                        if !failing || stopping {
                            tracing::warn!(%error, posts = tombstones.len(), "could not publish deleted posts; other hosts may still show them");
                        }
                        failing = true;
                        pending.keep(tombstones);
                        if !stopping {
                            tokio::time::sleep(RETRY_WAIT).await;
                            pending.grown.notify_one();
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
    let mut published = Box::pin(tombstones.follow());
    while let Some(news) = published.next().await {
        apply(
            &app,
            news.iter()
                .map(|published| (published.post_id, published.deleted, published.at_ms)),
        );
    }
}

/// Applies deletion states in order, because a post may have been deleted and restored. All of
/// them are applied in one step, because each change copies the whole set.
fn apply(app: &App, states: impl Iterator<Item = (u64, bool, UnixMs)>) {
    let mut latest = HashMap::new();
    for (post, deleted, at_ms) in states {
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
        let pending = PendingTombstones::default();
        let tombstone = |post_id, version, deleted| Tombstone {
            post_id,
            version,
            deleted,
        };
        pending.keep(vec![
            tombstone(1, 5, true),
            tombstone(2, 1, true),
            tombstone(1, 6, false),
        ]);
        // A failed attempt puts back states that may be outdated by now.
        pending.keep(vec![tombstone(1, 4, true)]);
        let tombstones = pending.tombstones();
        assert_eq!(tombstones.get(&1), Some(&tombstone(1, 6, false)));
        assert_eq!(tombstones.len(), 2);
    }
}
