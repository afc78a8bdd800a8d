//! The feed cache that all hosts share.
//!
//! A snapshot never changes, so each host keeps the snapshots it has used in its own memory. A
//! hit then costs one small round trip, for the pointer to the viewer's latest ranking, and no
//! decoding. A cursor into a snapshot that this host holds works even while Redis is down.

use super::{Redis, STORE_NAME, codec, keys};
use crate::ports::{CandidatesLookup, FeedCache, StoreError, StoreResult};
use async_trait::async_trait;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use nova_model::artifact::Digest;
use nova_model::snapshot::{Algo, CachedCandidates, Snapshot};
use nova_support::metrics::METRICS;
use prometheus::{Histogram, IntCounter};
use redis::{Script, cmd, pipe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Lifetime of a snapshot after its last use; a cursor into it is valid for the same time.
const SNAPSHOT_LIFE: Duration = Duration::from_secs(600);
/// Interval at which a host reports its uses of a snapshot to Redis.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);
/// Expiry of a snapshot in Redis, in s. It is longer than the lifetime by one interval, because
/// reports arrive that late.
const SNAPSHOT_EXPIRY_S: u64 = SNAPSHOT_LIFE.as_secs() + TOUCH_INTERVAL.as_secs();
/// Expiry of an epoch, in s. It is longer than any request that may still hold the epoch. After
/// it the epoch reads as 0, which no request held in the meantime.
const EPOCH_EXPIRY_S: u64 = 3_600;
/// Number of viewers whose newest ranking id this host remembers.
const NEWEST_MAX: u64 = 500_000;
/// Maximum number of digests per viewer. A viewer meets few policies within the lifetime of a
/// snapshot.
const DIGESTS_PER_VIEWER_MAX: usize = 4;

static PUT_SNAPSHOT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("put_snapshot.lua")));
static PUT_CANDIDATES: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("put_candidates.lua")));

#[derive(Debug, Clone)]
pub struct RedisCache {
    redis: Redis,
    known: Cache<Uuid, Arc<Known>>,
    /// The newest ranking of each viewer that this host made or read. It is used while
    /// Redis does not answer.
    newest: Cache<u64, Uuid>,
    snapshots: CacheMetrics,
    candidates: CacheMetrics,
}

/// A snapshot in this host's memory.
#[derive(Debug)]
struct Known {
    snapshot: Arc<Snapshot>,
    since: Instant,
    /// Time of the last report to Redis that the snapshot is used, in s after `since`.
    touched_s: AtomicU64,
}

impl Known {
    fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            snapshot,
            since: Instant::now(),
            touched_s: AtomicU64::new(0),
        }
    }

    /// Returns `true` if the next report to Redis is due; of several concurrent callers,
    /// only one gets `true`.
    fn touch(&self, now: Instant) -> bool {
        let now_s = now.saturating_duration_since(self.since).as_secs();
        let touched_s = self.touched_s.load(Ordering::Relaxed);
        now_s - touched_s.min(now_s) >= TOUCH_INTERVAL.as_secs()
            && self
                .touched_s
                .compare_exchange(touched_s, now_s, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// Metrics with their labels looked up once, because looking up labels costs more than counting.
#[derive(Debug, Clone)]
struct CacheMetrics {
    duration_seconds: Histogram,
    undecodable: IntCounter,
}

impl CacheMetrics {
    fn new(cache: &str) -> Self {
        let operations = &METRICS.cache_operations_total;
        Self {
            duration_seconds: METRICS.cache_duration_seconds.with_label_values(&[cache]),
            undecodable: operations.with_label_values(&[cache, "undecodable"]),
        }
    }
}

impl RedisCache {
    /// `bytes_max` limits the memory that this host uses for snapshots.
    pub fn new(redis: Redis, bytes_max: u64) -> Self {
        let weight = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self {
            redis,
            known: Cache::builder()
                // The default policy evicts new entries that have not been requested often, and
                // a new ranking has not been requested yet.
                .eviction_policy(EvictionPolicy::lru())
                .max_capacity(bytes_max)
                .weigher(move |_, known: &Arc<Known>| weight(known.snapshot.size_bytes()))
                .time_to_idle(SNAPSHOT_LIFE)
                .build(),
            newest: Cache::builder()
                .eviction_policy(EvictionPolicy::lru())
                .max_capacity(NEWEST_MAX)
                .time_to_idle(SNAPSHOT_LIFE)
                .build(),
            snapshots: CacheMetrics::new("snapshot"),
            candidates: CacheMetrics::new("candidates"),
        }
    }

    /// Reads a snapshot from this host's memory, or else from Redis. Both count as a use.
    async fn by_ranking(&self, ranking_id: Uuid) -> StoreResult<Option<Arc<Snapshot>>> {
        if let Some(known) = self.known.get(&ranking_id) {
            if known.touch(Instant::now()) {
                tokio::spawn(keep_alive(self.redis.clone(), known.snapshot.clone()));
            }
            return Ok(Some(known.snapshot.clone()));
        }
        let mut command = cmd("GETEX");
        command
            .arg(keys::snapshot(ranking_id))
            .arg("EX")
            .arg(SNAPSHOT_EXPIRY_S);
        let found: Option<Vec<u8>> =
            self.unless_poisoned(self.redis.call("snapshot", command).await, &self.snapshots)?;
        let Some(bytes) = found else {
            return Ok(None);
        };
        let Some(snapshot) = codec::decode_snapshot(&bytes, ranking_id) else {
            self.snapshots.undecodable.inc();
            return Ok(None);
        };
        let known = Arc::new(Known::new(Arc::new(snapshot)));
        self.known.insert(ranking_id, known.clone());
        self.note_newest(&known.snapshot);
        Ok(Some(known.snapshot.clone()))
    }

    /// Remembers the viewer's newest ranking; ranking ids are ordered by time. A timeline is left
    /// out, because it must not stand in for a ranking: it is the next step of the fallback chain.
    fn note_newest(&self, snapshot: &Snapshot) {
        if snapshot.algo == Algo::Ranked {
            let ranking_id = snapshot.ranking_id;
            self.newest.entry(snapshot.viewer).and_upsert_with(|known| {
                known.map_or(ranking_id, |k| k.into_value().max(ranking_id))
            });
        }
    }

    fn known_newest(&self, viewer: u64) -> Option<Arc<Snapshot>> {
        let known = self.known.get(&self.newest.get(&viewer)?)?;
        Some(known.snapshot.clone())
    }

    async fn by_pointer(
        &self,
        query: &'static str,
        pointer: redis::Cmd,
    ) -> StoreResult<Option<Arc<Snapshot>>> {
        let _timer = self.snapshots.duration_seconds.start_timer();
        let pointer: Option<Vec<u8>> =
            self.unless_poisoned(self.redis.call(query, pointer).await, &self.snapshots)?;
        match pointer.map(|bytes| Uuid::from_slice(&bytes)) {
            None => Ok(None),
            Some(Ok(ranking_id)) => self.by_ranking(ranking_id).await,
            Some(Err(_)) => {
                self.snapshots.undecodable.inc();
                Ok(None)
            }
        }
    }

    /// Treats a key of another type as a missing value, like bytes that do not decode.
    fn unless_poisoned<T>(
        &self,
        found: StoreResult<Option<T>>,
        metrics: &CacheMetrics,
    ) -> StoreResult<Option<T>> {
        found.or_else(|error| {
            if !is_wrong_type(&error) {
                return Err(error);
            }
            metrics.undecodable.inc();
            Ok(None)
        })
    }
}

fn is_wrong_type(error: &StoreError) -> bool {
    let cause = error.source.downcast_ref::<redis::RedisError>();
    cause.is_some_and(|cause| cause.code() == Some("WRONGTYPE"))
}

/// Reports to Redis that a snapshot is used. If Redis has lost the snapshot, it is written again,
/// because other hosts may be asked for its next page.
pub(super) async fn keep_alive(redis: Redis, snapshot: Arc<Snapshot>) {
    let key = keys::snapshot(snapshot.ranking_id);
    let mut touch = pipe();
    touch.expire(&key, SNAPSHOT_EXPIRY_S as i64);
    touch
        .expire(keys::newest(snapshot.viewer), SNAPSHOT_EXPIRY_S as i64)
        .ignore();
    match redis.call::<(bool,)>("touch_snapshot", touch).await {
        Ok((true,)) => {}
        Ok((false,)) => {
            if let Ok(bytes) = codec::encode_snapshot(&snapshot) {
                let mut restore = cmd("SET");
                restore.arg(key).arg(bytes).arg("EX").arg(SNAPSHOT_EXPIRY_S);
                let _: StoreResult<()> = redis.call("restore_snapshot", restore).await;
            }
        }
        Err(error) => tracing::debug!(%error, "could not renew a snapshot in Redis; will retry"),
    }
}

/// Parses a stored epoch. It is 0 for a viewer whose epoch was not ended recently.
pub(super) fn epoch_of(stored: Option<Vec<u8>>) -> u64 {
    stored
        .and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok())
        .unwrap_or(0)
}

fn unencodable(query: &'static str) -> impl Fn(anyhow::Error) -> StoreError {
    move |source| StoreError {
        store: STORE_NAME,
        query,
        retryable: false,
        source,
    }
}

#[async_trait]
impl FeedCache for RedisCache {
    fn name(&self) -> &'static str {
        STORE_NAME
    }

    async fn snapshot(&self, ranking_id: Uuid) -> StoreResult<Option<Arc<Snapshot>>> {
        let _timer = self.snapshots.duration_seconds.start_timer();
        self.by_ranking(ranking_id).await
    }

    async fn latest_snapshot(
        &self,
        viewer: u64,
        effective_digest: Digest,
    ) -> StoreResult<Option<Arc<Snapshot>>> {
        let mut pointer = cmd("HGET");
        pointer
            .arg(keys::latest(viewer))
            .arg(effective_digest.to_string());
        let found = self.by_pointer("latest_snapshot", pointer).await?;
        Ok(found.filter(|snapshot| {
            snapshot.viewer == viewer && snapshot.policy.effective_digest == effective_digest
        }))
    }

    async fn newest_snapshot(&self, viewer: u64) -> StoreResult<Option<Arc<Snapshot>>> {
        let pointer = cmd("GET").arg(keys::newest(viewer)).to_owned();
        let found = match self.by_pointer("newest_snapshot", pointer).await {
            Ok(found) => found,
            // Another host may have made a newer ranking, but this one is better than none.
            Err(error) => Some(self.known_newest(viewer).ok_or(error)?),
        };
        Ok(found.filter(|snapshot| snapshot.viewer == viewer))
    }

    async fn put_snapshot(&self, snapshot: Arc<Snapshot>, epoch: Option<u64>) -> StoreResult<()> {
        let _timer = self.snapshots.duration_seconds.start_timer();
        let (viewer, ranking_id) = (snapshot.viewer, snapshot.ranking_id);
        // Insert into this host's memory first, so that cursors work on this host even if Redis
        // fails.
        let known = Arc::new(Known::new(snapshot.clone()));
        self.known.insert(ranking_id, known);
        self.note_newest(&snapshot);
        let bytes = codec::encode_snapshot(&snapshot).map_err(unencodable("put_snapshot"))?;
        let mut script = PUT_SNAPSHOT.key(keys::snapshot(ranking_id));
        script
            .key(keys::newest(viewer))
            .key(keys::latest(viewer))
            .key(keys::epoch(viewer))
            .arg(bytes)
            .arg(ranking_id.as_bytes())
            .arg(SNAPSHOT_EXPIRY_S)
            // Only a ranking may become the newest one; see `note_newest`.
            .arg(u8::from(snapshot.algo == Algo::Ranked))
            .arg(snapshot.policy.effective_digest.to_string())
            .arg(epoch.map(|epoch| epoch.to_string()).unwrap_or_default())
            .arg(DIGESTS_PER_VIEWER_MAX);
        self.redis.call("put_snapshot", script).await
    }

    async fn candidates(&self, viewer: u64) -> StoreResult<CandidatesLookup> {
        let _timer = self.candidates.duration_seconds.start_timer();
        let mut command = cmd("MGET");
        command
            .arg(keys::epoch(viewer))
            .arg(keys::candidates(viewer));
        let (epoch, stored): (Option<Vec<u8>>, Option<Vec<u8>>) =
            self.redis.call("candidates", command).await?;
        let candidates = stored.and_then(|bytes| {
            let decoded = codec::decode_candidates(&bytes, viewer);
            if decoded.is_none() {
                self.candidates.undecodable.inc();
            }
            decoded.map(Arc::new)
        });
        Ok(CandidatesLookup {
            epoch: epoch_of(epoch),
            candidates,
        })
    }

    async fn put_candidates(
        &self,
        viewer: u64,
        epoch: u64,
        candidates: Arc<CachedCandidates>,
        ttl: Duration,
    ) -> StoreResult<()> {
        let _timer = self.candidates.duration_seconds.start_timer();
        let left = ttl.saturating_sub(candidates.fetched.elapsed());
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        if left_ms == 0 {
            return Ok(());
        }
        let bytes =
            codec::encode_candidates(viewer, &candidates).map_err(unencodable("put_candidates"))?;
        let mut script = PUT_CANDIDATES.key(keys::candidates(viewer));
        script
            .key(keys::epoch(viewer))
            .arg(bytes)
            .arg(left_ms)
            .arg(epoch);
        self.redis.call("put_candidates", script).await
    }

    async fn epoch(&self, viewer: u64) -> StoreResult<u64> {
        let command = cmd("MGET").arg(keys::epoch(viewer)).to_owned();
        let [epoch] = self.redis.call("epoch", command).await?;
        Ok(epoch_of(epoch))
    }

    /// Ends the epoch. The next epoch is a random number instead of a counter: Redis may lose an
    /// epoch at any moment, and a counter that restarted from the beginning could reach a number
    /// that a request still holds.
    async fn invalidate(&self, viewer: u64) -> StoreResult<()> {
        let next: u64 = rand::random_range(1..=u64::MAX);
        let mut end = pipe();
        end.atomic()
            .set_ex(keys::epoch(viewer), next, EPOCH_EXPIRY_S)
            .ignore()
            .unlink(&[keys::candidates(viewer), keys::latest(viewer)])
            .ignore();
        self.redis.call("overtake", end).await
    }

    async fn ping(&self) -> StoreResult<()> {
        self.redis.ping().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::cache::snapshot;

    #[test]
    fn use_of_a_snapshot_is_reported_once_a_minute() {
        let known = Known::new(snapshot(1, Uuid::now_v7(), Algo::Ranked, "a"));
        let after = |s| known.since + Duration::from_secs(s);
        assert!(!known.touch(after(0)));
        assert!(!known.touch(after(59)));
        assert!(known.touch(after(60)));
        assert!(!known.touch(after(61)));
        assert!(!known.touch(after(119)));
        assert!(known.touch(after(200)));
    }
}
