//! Deleted posts, and those that came back: what this host captured is so here at once and told to all others, and what
//! others captured is so here.

use crate::app::App;
use crate::clock::unix_ms;
use crate::feed::deleted::Fate;
use crate::stores::UnixMs;
use crate::stores::redis::tombstones::Tombstones;
use futures::StreamExt as _;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Between two attempts to tell Redis.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// Posts that may wait to be told. More than a host remembers would be told for nothing.
const WAITING_MAX: usize = 200_000;

/// What became of each post, until Redis has it. An outage of the cache must neither hold changes up nor bring a deleted
/// post back.
#[derive(Debug, Clone, Default)]
pub(super) struct Untold {
    fates: Arc<Mutex<HashMap<u64, Fate>>>,
    grown: Arc<Notify>,
}

impl Untold {
    /// Here at once; elsewhere as soon as Redis can be told.
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

    /// Of several fates of one post the latest is told.
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

    /// Tells until the host stops, and then once more.
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
                        // One line for an outage, not one a second.
                        if !failing || stopping {
                            tracing::warn!(%error, posts = fates.len(), "other hosts may still show what was deleted");
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

/// What any host captured of deleted posts is so in this host's answers.
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

/// In their order: a post may have been deleted, and be there again. All of them at once: each change of what is known
/// copies it.
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
    app.deleted.add(&gone, unix_ms());
    app.deleted.remove(&back);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_the_latest_fate_of_each_post() {
        let untold = Untold::default();
        let fate = |post_id, version, deleted| Fate {
            post_id,
            version,
            deleted,
        };
        untold.keep(vec![fate(1, 5, true), fate(2, 1, true), fate(1, 6, false)]);
        // An attempt that failed brings back what it had taken: older, by now.
        untold.keep(vec![fate(1, 4, true)]);
        let fates = untold.fates();
        assert_eq!(fates.get(&1), Some(&fate(1, 6, false)));
        assert_eq!(fates.len(), 2);
    }
}
