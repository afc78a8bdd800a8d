//! Seen posts, exactly: kept in the process while a viewer is active, read from the spool and the
//! imported events when one comes back.

use super::EmbeddedStore;
use crate::clock::unix_ms;
use crate::events::spool::Spool;
use crate::stores::{DAY_MS, Seen, SeenPosts, StoreError, StoreResult, UnixMs};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use moka::future::Cache;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Viewers kept; one who comes back after that is read again.
const VIEWERS_MAX: u64 = 200_000;
const IDLE: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone)]
pub struct ProcessSeen {
    spool: Spool,
    store: EmbeddedStore,
    viewers: Cache<u64, Arc<ArcSwap<Seen>>>,
    /// Versions are never used twice, not even when a viewer is read again.
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
            version: Arc::default(),
        }
    }

    fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Ordering::Relaxed)
    }

    /// Concurrent callers share one read, so a mark cannot fall between a read and its insertion.
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
            .map_err(|error: Arc<StoreError>| StoreError {
                store: error.store,
                query: error.query,
                retryable: error.retryable,
                source: anyhow::anyhow!("{:#}", error.source),
            })
    }
}

#[async_trait]
impl SeenPosts for ProcessSeen {
    async fn seen(&self, viewer: u64) -> StoreResult<Arc<Seen>> {
        Ok(self.viewer(viewer).await?.load_full())
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
            if joined {
                next.version = self.next_version();
            }
            next
        });
        Ok(())
    }
}
