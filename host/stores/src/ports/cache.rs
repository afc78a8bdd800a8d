//! Ports: the caches that hosts share, of feeds and of small values.

use super::StoreResult;
use async_trait::async_trait;
use nova_model::artifact::Digest;
use nova_model::snapshot::{CachedCandidates, Snapshot};
use std::sync::Arc;
use std::time::Duration;

/// The shared cache of feeds (Redis in the real stack). A failure here is a cache miss, never an
/// error for the viewer.
///
/// Each viewer has an **epoch**, which [`FeedCache::invalidate`] ends. A result whose computation
/// began in an epoch that has ended is not cached: a ranking that was being computed while its
/// viewer liked a post would otherwise hide that like for the whole lifetime of the cache entry.
#[async_trait]
pub trait FeedCache: Send + Sync + 'static {
    /// The name used in `degraded`, `/health` and metrics.
    fn name(&self) -> &'static str;

    /// Returns the snapshot of a ranking, within its lifetime of 10 min after its last use.
    async fn snapshot(&self, ranking_id: uuid::Uuid) -> StoreResult<Option<Arc<Snapshot>>>;

    /// The newest snapshot of a viewer that was made with one effective digest in the
    /// viewer's current epoch.
    async fn latest_snapshot(
        &self,
        viewer: u64,
        effective_digest: Digest,
    ) -> StoreResult<Option<Arc<Snapshot>>>;

    /// The newest snapshot of a viewer that is not a timeline, made with any effective digest.
    async fn newest_snapshot(&self, viewer: u64) -> StoreResult<Option<Arc<Snapshot>>>;

    /// Stores a snapshot so that its cursors work. It becomes `latest` if `epoch` is still the
    /// viewer's current one; with `None` it never does.
    async fn put_snapshot(&self, snapshot: Arc<Snapshot>, epoch: Option<u64>) -> StoreResult<()>;

    /// The viewer's cached candidates, and the epoch in which the lookup was made.
    async fn candidates(&self, viewer: u64) -> StoreResult<CandidatesLookup>;

    /// Caches candidates; does nothing if `epoch` has ended. Candidates older than `ttl`
    /// are never asked for.
    async fn put_candidates(
        &self,
        viewer: u64,
        epoch: u64,
        candidates: Arc<CachedCandidates>,
        ttl: Duration,
    ) -> StoreResult<()>;

    async fn epoch(&self, viewer: u64) -> StoreResult<u64>;

    /// Ends the viewer's epoch, drops the cached candidates and marks no snapshot as `latest`
    /// any more. Called after the viewer's own like, comment or share, and after a new post by
    /// an author they follow. The snapshots themselves stay, so that their cursors work.
    async fn invalidate(&self, viewer: u64) -> StoreResult<()>;

    async fn ping(&self) -> StoreResult<()>;
}

#[derive(Debug, Clone)]
pub struct CandidatesLookup {
    pub epoch: u64,
    pub candidates: Option<Arc<CachedCandidates>>,
}

/// Small values that hosts share by key, each with a TTL (Redis in the real stack): trending
/// lists, suggestions, daily metrics. A failure is a cache miss.
#[async_trait]
pub trait ValueCache: Send + Sync + 'static {
    async fn get(&self, key: &str) -> StoreResult<Option<Vec<u8>>>;

    async fn put(&self, key: &str, value: Vec<u8>, ttl: Duration) -> StoreResult<()>;

    async fn remove(&self, key: &str) -> StoreResult<()>;
}
