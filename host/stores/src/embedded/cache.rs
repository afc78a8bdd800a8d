//! In-process caches of feeds and small values, bounded in bytes and in time.

use crate::ports::{CandidatesLookup, FeedCache, StoreResult, ValueCache};
use async_trait::async_trait;
use moka::policy::EvictionPolicy;
use moka::sync::{Cache, CacheBuilder};
use nova_model::artifact::Digest;
use nova_model::snapshot::{Algo, CachedCandidates, Snapshot};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Lifetime of a snapshot after its last use. A cursor into it is valid for the same time.
const SNAPSHOT_LIFE: Duration = Duration::from_secs(600);
/// Upper bound on the age of cached candidates. The reader checks the configured TTL, which may
/// be shorter.
const CANDIDATES_LIFE: Duration = Duration::from_secs(3_600);

/// Maximum rankings remembered for one viewer. Few policies serve one viewer within the life of
/// a snapshot.
const DIGESTS_PER_VIEWER_MAX: usize = 4;

#[derive(Debug, Clone)]
pub struct ProcessCache {
    snapshots: Cache<Uuid, Arc<Snapshot>>,
    /// viewer → the newest ranking of each effective digest, newest first.
    latest: Cache<u64, Vec<(Digest, Uuid)>>,
    /// viewer → the newest ranking that is not a timeline.
    newest: Cache<u64, Uuid>,
    candidates: Cache<u64, Arc<CachedCandidates>>,
    values: Cache<String, (Instant, Vec<u8>)>,
    epochs: Arc<Epochs>,
}

/// The epochs of all viewers. Viewers whose ids map to the same slot share an epoch: an
/// unneeded end costs one cached response, while a counter for each viewer would cost memory
/// for every viewer ever seen.
#[derive(Debug)]
struct Epochs(Box<[AtomicU64]>);

const EPOCHS: usize = 1 << 16;
/// Size limit for trending lists, suggestions and reports.
const VALUES_BYTES_MAX: u64 = 16 << 20;

impl Default for Epochs {
    fn default() -> Self {
        Self((0..EPOCHS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Epochs {
    fn epoch(&self, viewer: u64) -> &AtomicU64 {
        &self.0[viewer as usize % EPOCHS]
    }
}

impl ProcessCache {
    /// Creates caches of `bytes_max` for snapshots and as much again for candidates.
    pub fn new(bytes_max: u64) -> Self {
        let weight = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let index_entries_max = bytes_max / 256;
        Self {
            snapshots: cache()
                .max_capacity(bytes_max)
                .weigher(move |_, snapshot: &Arc<Snapshot>| weight(snapshot.size_bytes()))
                .time_to_idle(SNAPSHOT_LIFE)
                .build(),
            latest: cache()
                .max_capacity(index_entries_max)
                .time_to_idle(SNAPSHOT_LIFE)
                .build(),
            newest: cache()
                .max_capacity(index_entries_max)
                .time_to_idle(SNAPSHOT_LIFE)
                .build(),
            candidates: cache()
                .max_capacity(bytes_max)
                .weigher(move |_, cached: &Arc<CachedCandidates>| weight(cached.size_bytes()))
                .time_to_live(CANDIDATES_LIFE)
                .build(),
            values: cache()
                .max_capacity(VALUES_BYTES_MAX)
                .weigher(move |key: &String, (_, value): &(Instant, Vec<u8>)| {
                    weight(key.len() + value.len())
                })
                .build(),
            epochs: Arc::default(),
        }
    }

    fn epoch_of(&self, viewer: u64) -> u64 {
        self.epochs.epoch(viewer).load(Ordering::Acquire)
    }
}

/// Returns the builder of an LRU cache. The default policy would drop the new entry instead,
/// unless it is requested often. A new ranking has not been requested yet, so its cursor would
/// expire at once.
fn cache<K, V>() -> CacheBuilder<K, V, Cache<K, V>>
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().eviction_policy(EvictionPolicy::lru())
}

#[async_trait]
impl FeedCache for ProcessCache {
    fn name(&self) -> &'static str {
        "cache"
    }

    async fn snapshot(&self, ranking_id: Uuid) -> StoreResult<Option<Arc<Snapshot>>> {
        Ok(self.snapshots.get(&ranking_id))
    }

    async fn latest_snapshot(
        &self,
        viewer: u64,
        effective_digest: Digest,
    ) -> StoreResult<Option<Arc<Snapshot>>> {
        let latest = self.latest.get(&viewer).unwrap_or_default();
        let ranking = latest
            .iter()
            .find(|(digest, _)| *digest == effective_digest);
        Ok(ranking.and_then(|(_, ranking_id)| self.snapshots.get(ranking_id)))
    }

    async fn newest_snapshot(&self, viewer: u64) -> StoreResult<Option<Arc<Snapshot>>> {
        Ok(self
            .newest
            .get(&viewer)
            .and_then(|ranking_id| self.snapshots.get(&ranking_id)))
    }

    async fn put_snapshot(&self, snapshot: Arc<Snapshot>, epoch: Option<u64>) -> StoreResult<()> {
        let (viewer, ranking_id) = (snapshot.viewer, snapshot.ranking_id);
        let digest = snapshot.policy.effective_digest;
        if epoch == Some(self.epoch_of(viewer)) {
            self.latest.entry(viewer).and_upsert_with(|current| {
                let others = current.map(moka::Entry::into_value).unwrap_or_default();
                let others = others.into_iter().filter(|(other, _)| *other != digest);
                std::iter::once((digest, ranking_id))
                    .chain(others)
                    .take(DIGESTS_PER_VIEWER_MAX)
                    .collect()
            });
        }
        // A timeline must not replace a ranking here, because it is the next step of the
        // fallback chain.
        if snapshot.algo == Algo::Ranked {
            self.newest.insert(viewer, ranking_id);
        }
        self.snapshots.insert(ranking_id, snapshot);
        Ok(())
    }

    async fn candidates(&self, viewer: u64) -> StoreResult<CandidatesLookup> {
        Ok(CandidatesLookup {
            epoch: self.epoch_of(viewer),
            candidates: self.candidates.get(&viewer),
        })
    }

    async fn put_candidates(
        &self,
        viewer: u64,
        epoch: u64,
        candidates: Arc<CachedCandidates>,
        _ttl: Duration,
    ) -> StoreResult<()> {
        if epoch == self.epoch_of(viewer) {
            self.candidates.insert(viewer, candidates);
        }
        Ok(())
    }

    async fn epoch(&self, viewer: u64) -> StoreResult<u64> {
        Ok(self.epoch_of(viewer))
    }

    async fn invalidate(&self, viewer: u64) -> StoreResult<()> {
        self.epochs.epoch(viewer).fetch_add(1, Ordering::AcqRel);
        self.candidates.invalidate(&viewer);
        self.latest.invalidate(&viewer);
        Ok(())
    }

    async fn ping(&self) -> StoreResult<()> {
        Ok(())
    }
}

#[async_trait]
impl ValueCache for ProcessCache {
    async fn get(&self, key: &str) -> StoreResult<Option<Vec<u8>>> {
        let found = self.values.get(key);
        Ok(found
            .filter(|(expires, _)| Instant::now() < *expires)
            .map(|(_, value)| value))
    }

    async fn put(&self, key: &str, value: Vec<u8>, ttl: Duration) -> StoreResult<()> {
        self.values
            .insert(key.to_owned(), (Instant::now() + ttl, value));
        Ok(())
    }

    async fn remove(&self, key: &str) -> StoreResult<()> {
        self.values.invalidate(key);
        Ok(())
    }
}
