//! Redis behind a proxy that injects faults. Every fault is an error or a miss within the
//! deadline, opens the circuit after three calls, and has no lasting effect once it ends.

use crate::fault_proxy::{Fault, FaultProxy};
use crate::services::redis_url;
use nova_model::deleted::Tombstone;
use nova_model::features::CandidateSet;
use nova_model::snapshot::{Algo, CachedCandidates, ServedBy, ServedPolicy, Snapshot};
use nova_stores::breaker::{Breaker, Circuit};
use nova_stores::guard::Guard;
use nova_stores::ports::{FeedCache, SeenPosts};
use nova_stores::redis::cache::RedisCache;
use nova_stores::redis::seen::RedisSeen;
use nova_stores::redis::tombstones::Tombstones;
use nova_stores::redis::{CALL_TIMEOUT, Redis};
use nova_support::clock::unix_ms;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use uuid::Uuid;

const LIFE: Duration = Duration::from_secs(60);
/// Long enough that no call of a test falls into the time after it, and short enough to wait
/// for.
const CIRCUIT_OPEN: Duration = Duration::from_millis(300);
/// A call that takes this long had no deadline. Shorter delays are explained by two busy cores.
const NO_DEADLINE: Duration = Duration::from_secs(2);

/// Time limit for calls that do not go through the proxy. It is generous, because a busy machine
/// responds late.
const PATIENCE: Duration = Duration::from_secs(10);

const FAULTS: [Fault; 6] = [
    Fault::Refuse,
    Fault::Silent,
    Fault::ResetAfter(0),
    Fault::ResetAfter(3),
    Fault::Garbage,
    Fault::Slow(Duration::from_secs(3)),
];

struct Faulty {
    proxy: FaultProxy,
    guard: Guard,
    cache: RedisCache,
    seen: RedisSeen,
    redis: Redis,
    /// The same cache, connected directly instead of through the proxy.
    beside: RedisCache,
    viewer: u64,
}

fn beside_the_proxy(url: &str) -> Redis {
    Redis::with_guard(url, Guard::new("redis_tests", PATIENCE), PATIENCE).unwrap()
}

impl Faulty {
    async fn start() -> Option<Self> {
        let direct = redis_url()?;
        let (proxy, url) = FaultProxy::in_front_of(&direct).await;
        let guard = Guard::with_breaker("redis_faults", CALL_TIMEOUT, Breaker::new(CIRCUIT_OPEN));
        let redis = Redis::with_guard(&url, guard.clone(), CALL_TIMEOUT).unwrap();
        Some(Self {
            proxy,
            guard,
            // No process-local memory, so every value found came through the proxy.
            cache: RedisCache::new(redis.clone(), 0),
            seen: RedisSeen::new(redis.clone()),
            redis,
            beside: RedisCache::new(beside_the_proxy(&direct), 0),
            viewer: rand::random_range(1 << 40..1 << 50),
        })
    }

    /// Stores the values that the faults are meant to hide from the reader.
    async fn fill(&self) {
        let snapshot = snapshot(self.viewer);
        self.beside.put_snapshot(snapshot, Some(0)).await.unwrap();
        let candidates = Arc::new(CachedCandidates {
            set: Arc::new(CandidateSet::default()),
            fetched: Instant::now(),
        });
        self.beside
            .put_candidates(self.viewer, 0, candidates, LIFE)
            .await
            .unwrap();
    }

    async fn finds_candidates(&self) -> bool {
        let found = self.cache.candidates(self.viewer).await;
        found.is_ok_and(|found| found.candidates.is_some())
    }

    /// Ends the fault and asserts that the value is found again, with no other action.
    async fn recovers(&self) {
        self.proxy.set(Fault::None);
        crate::harness::eventually(Duration::from_secs(20), "the circuit closes", || async {
            self.finds_candidates().await
        })
        .await;
        assert_eq!(self.guard.circuit(), Circuit::Closed);
    }

    async fn end(self) {
        self.beside.invalidate(self.viewer).await.unwrap();
    }
}

fn snapshot(viewer: u64) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        ranking_id: Uuid::now_v7(),
        viewer,
        algo: Algo::Ranked,
        served_by: ServedBy::Native,
        fallback: false,
        degraded: Vec::new(),
        policy: ServedPolicy::native(Algo::Ranked),
        assignment: None,
        created: Instant::now(),
        created_at_ms: unix_ms(),
        seen_version: 1,
        posts: Vec::new(),
        first_page: OnceLock::new(),
        whole_in: AtomicU64::new(0),
    })
}

#[tokio::test]
async fn every_fault_is_a_miss_within_the_deadline_and_three_open_the_circuit_until_it_ends() {
    let Some(faulty) = Faulty::start().await else {
        return;
    };
    faulty.fill().await;
    faulty.recovers().await;
    let digest = ServedPolicy::native(Algo::Ranked).effective_digest;
    for fault in FAULTS {
        faulty.proxy.set(fault);
        let began = Instant::now();
        let latest = faulty.cache.latest_snapshot(faulty.viewer, digest).await;
        assert!(!latest.is_ok_and(|found| found.is_some()), "{fault:?}");
        assert!(!faulty.finds_candidates().await, "{fault:?}");
        let put = faulty.cache.put_snapshot(snapshot(faulty.viewer), None);
        assert!(put.await.is_err(), "{fault:?}");
        assert_eq!(faulty.guard.circuit(), Circuit::Open, "{fault:?}");
        let refused = faulty.seen.version(faulty.viewer).await.unwrap_err();
        assert!(format!("{refused:#}").contains("circuit"), "{refused:#}");
        assert!(began.elapsed() < NO_DEADLINE, "{fault:?}");
        faulty.recovers().await;
    }
    faulty.end().await;
}

#[tokio::test]
async fn concurrent_callers_share_the_wait_for_a_silent_redis() {
    let Some(faulty) = Faulty::start().await else {
        return;
    };
    faulty.fill().await;
    faulty.recovers().await;
    faulty.proxy.set(Fault::Silent);
    let began = Instant::now();
    let waiting = (0..200).map(|_| faulty.seen.among(faulty.viewer, &[1, 2], unix_ms()));
    for found in futures::future::join_all(waiting).await {
        assert!(found.is_err());
    }
    assert!(began.elapsed() < NO_DEADLINE);
    faulty.recovers().await;
    faulty.end().await;
}

#[tokio::test]
async fn late_replies_never_reach_another_caller() {
    let Some(faulty) = Faulty::start().await else {
        return;
    };
    faulty.fill().await;
    faulty.recovers().await;
    // Long enough to miss the deadline, short enough to arrive while other callers wait.
    faulty.proxy.set(Fault::Slow(CALL_TIMEOUT * 2));
    assert!(!faulty.finds_candidates().await);
    faulty.proxy.set(Fault::None);
    for n in 1..200 {
        let stranger = faulty.viewer + n;
        if let Ok(found) = faulty.cache.candidates(stranger).await {
            assert!(found.candidates.is_none());
        }
    }
    faulty.recovers().await;
    faulty.end().await;
}

#[tokio::test]
async fn a_cache_created_while_redis_is_unavailable_connects_later() {
    let Some(faulty) = Faulty::start().await else {
        return;
    };
    faulty.proxy.set(Fault::Refuse);
    assert!(faulty.cache.ping().await.is_err());
    faulty.proxy.set(Fault::None);
    crate::harness::eventually(Duration::from_secs(20), "Redis responds", || async {
        faulty.cache.ping().await.is_ok()
    })
    .await;
    faulty.end().await;
}

fn tombstone(post_id: u64) -> Tombstone {
    Tombstone {
        post_id,
        version: 1,
        deleted: true,
    }
}

#[tokio::test]
async fn a_deletion_during_an_outage_is_published_afterwards() {
    use futures::StreamExt as _;
    let Some(faulty) = Faulty::start().await else {
        return;
    };
    let elsewhere = Tombstones::new(&beside_the_proxy(&redis_url().unwrap()));
    let [before, during] = [faulty.viewer, faulty.viewer + 1];
    let mut followed = Box::pin(Tombstones::new(&faulty.redis).follow());
    let mut published = Vec::new();
    elsewhere.publish(&[tombstone(before)]).await.unwrap();
    while !published.contains(&before) {
        published.extend(
            followed
                .next()
                .await
                .unwrap()
                .into_iter()
                .map(|published| published.post_id),
        );
    }
    faulty.proxy.set(Fault::Refuse);
    elsewhere.publish(&[tombstone(during)]).await.unwrap();
    let outage = tokio::time::timeout(Duration::from_millis(100), followed.next()).await;
    assert!(outage.is_err(), "no deletion can be published");
    faulty.proxy.set(Fault::None);
    while !published.contains(&during) {
        published.extend(
            followed
                .next()
                .await
                .unwrap()
                .into_iter()
                .map(|published| published.post_id),
        );
    }
    faulty.end().await;
}
