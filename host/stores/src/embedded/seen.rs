//! Exact sets of seen posts. A set stays in memory while its viewer is active. When a viewer
//! returns, it is read from the spool and from the imported events.

use super::EmbeddedStore;
use crate::ports::{SeenAmong, SeenPosts, StoreError, StoreResult};
use crate::spool::Spool;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use moka::future::Cache;
use nova_model::time::{DAY_MS, UnixMs};
use nova_support::clock::unix_ms;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Maximum viewers in memory. The set of an evicted viewer is read again.
const VIEWERS_MAX: u64 = 200_000;
const IDLE: Duration = Duration::from_secs(3_600);

/// A viewer's seen posts at one moment.
#[derive(Debug, Clone, Default)]
struct Seen {
    version: u64,
    /// Post → time of its last acceptance as seen.
    posts: HashMap<u64, UnixMs>,
}

impl Seen {
    fn contains(&self, post_id: u64, now_ms: UnixMs) -> bool {
        self.posts
            .get(&post_id)
            .is_some_and(|&accepted_ms| accepted_ms + DAY_MS > now_ms)
    }
}

#[derive(Debug, Clone)]
pub struct ProcessSeen {
    spool: Spool,
    store: EmbeddedStore,
    viewers: Cache<u64, Arc<ArcSwap<Seen>>>,
    /// The next version. A version is never used twice, not even if a viewer is read again.
    version: Arc<AtomicU64>,
}

impl ProcessSeen {
    pub fn new(spool: Spool, store: EmbeddedStore) -> Self {
        let viewers = Cache::builder()
            .max_capacity(VIEWERS_MAX)
            .time_to_idle(IDLE)
            .build();
        Self {
            spool,
            store,
            viewers,
            // 0 is the version of a set that could not be read.
            version: Arc::new(AtomicU64::new(1)),
        }
    }

    fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the set of a viewer. Concurrent callers share one read, so a mark cannot fall
    /// between a read and its insertion.
    async fn viewer(&self, viewer: u64) -> StoreResult<Arc<ArcSwap<Seen>>> {
        if let Some(seen) = self.viewers.get(&viewer).await {
            return Ok(seen);
        }
        let load = async {
            let since_ms = unix_ms().saturating_sub(DAY_MS);
            let mut seen = Seen {
                version: self.next_version(),
                ..Seen::default()
            };
            let imported = self.store.seen_since(viewer, since_ms).await?;
            let spooled = self
                .spool
                .seen_since(viewer, since_ms)
                .await
                .map_err(|source| StoreError {
                    store: "sqlite",
                    query: "spool_seen",
                    retryable: true,
                    source,
                })?;
            for (post_id, accepted_ms) in imported.into_iter().chain(spooled) {
                let last = seen.posts.entry(post_id).or_default();
                *last = accepted_ms.max(*last);
            }
            Ok(Arc::new(ArcSwap::from_pointee(seen)))
        };
        self.viewers
            .try_get_with(viewer, load)
            .await
            .map_err(|error: Arc<StoreError>| StoreError::from_shared(&error))
    }
}

/// Maximum posts of one viewer. Real viewers see fewer a day, and a client that reports more
/// must not cost more memory.
const POSTS_PER_VIEWER_MAX: usize = 10_000;

fn drop_oldest(posts: &mut HashMap<u64, UnixMs>) {
    let excess = posts.len().saturating_sub(POSTS_PER_VIEWER_MAX);
    if excess == 0 {
        return;
    }
    let mut ages: Vec<UnixMs> = posts.values().copied().collect();
    let (_, youngest_to_go, _) = ages.select_nth_unstable(excess - 1);
    let bound = *youngest_to_go;
    posts.retain(|_, accepted_ms| *accepted_ms > bound);
}

#[async_trait]
impl SeenPosts for ProcessSeen {
    fn name(&self) -> &'static str {
        super::STORE_NAME
    }

    async fn version(&self, viewer: u64) -> StoreResult<u64> {
        Ok(self.viewer(viewer).await?.load().version)
    }

    async fn among(&self, viewer: u64, posts: &[u64], now_ms: UnixMs) -> StoreResult<SeenAmong> {
        let viewer = self.viewer(viewer).await?;
        let seen = viewer.load();
        Ok(SeenAmong {
            version: seen.version,
            seen: posts
                .iter()
                .map(|&post| seen.contains(post, now_ms))
                .collect(),
        })
    }

    async fn count(&self, viewer: u64, now_ms: UnixMs) -> StoreResult<u64> {
        let viewer = self.viewer(viewer).await?;
        let seen = viewer.load();
        let current = seen
            .posts
            .keys()
            .filter(|&&post| seen.contains(post, now_ms));
        Ok(current.count() as u64)
    }

    async fn mark(&self, viewer: u64, posts: &[u64], accepted_ms: UnixMs) -> StoreResult<()> {
        let seen = self.viewer(viewer).await?;
        seen.rcu(|current| {
            let mut next = Seen::clone(current);
            next.posts.retain(|_, at| *at + DAY_MS > accepted_ms);
            let mut joined = false;
            for post in posts {
                joined |= next.posts.insert(*post, accepted_ms).is_none();
            }
            drop_oldest(&mut next.posts);
            if joined {
                next.version = self.next_version();
            }
            next
        });
        Ok(())
    }
}
