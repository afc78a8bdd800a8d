//! The application state: every dependency that handlers share, constructed once.

use crate::config::{Config, Flags, Live};
use crate::discover::suggested::Suggestions;
use crate::discover::trending::Trending;
use crate::events::drain::Counted;
use crate::experiments::exposure::Exposures;
use crate::feed::cursor::CursorKey;
use crate::feed::shadow::Shadows;
use crate::http::auth::TokenKeys;
use crate::http::health::Pings;
use crate::http::limits::RateLimits;
use crate::jobs::profile::Profile;
use crate::replay::recorder::Recorder;
use arc_swap::ArcSwap;
use futures::StreamExt as _;
use moka::future::Cache;
use nova_control::deploy::Deploy;
use nova_control::routing::Lookup;
use nova_control::watcher::WatchReport;
use nova_model::deleted::DeletedPosts;
use nova_model::user::ViewerAttributes;
use nova_policy::pool::CpuPool;
use nova_stores::guard;
use nova_stores::ports::{
    CandidateStore, EventSink, ExposureStore, FeedCache, Lease, RelationalStore, SeenPosts,
    StoreError, ValueCache,
};
use nova_stores::redis::claims::RedisClaims;
use nova_stores::spool::Spool;
use nova_support::metrics::METRICS;
use prometheus::IntCounter;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The stores of a host, with one implementation for each interface.
#[derive(Clone)]
pub struct StoreSet {
    pub candidates: Arc<dyn CandidateStore>,
    pub relational: Arc<dyn RelationalStore>,
    pub exposures: Arc<dyn ExposureStore>,
    pub sink: Arc<dyn EventSink>,
    pub cache: Arc<dyn FeedCache>,
    pub values: Arc<dyn ValueCache>,
    pub seen: Arc<dyn SeenPosts>,
    pub lease: Arc<dyn Lease>,
    /// Claims on events, if other hosts may have accepted the same events. A single host uses
    /// those of its spool.
    pub claims: Option<RedisClaims>,
}

impl std::fmt::Debug for StoreSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreSet").finish_non_exhaustive()
    }
}

pub struct App {
    pub config: Config,
    pub stores: StoreSet,
    pub deploy: Arc<Deploy>,
    pub policy_pool: CpuPool,
    pub spool: Spool,
    pub exposures: Exposures,
    pub recorder: Recorder,
    pub shadows: Shadows,
    pub trending: Trending,
    pub suggestions: Suggestions,
    pub token_keys: TokenKeys,
    pub cursor_key: CursorKey,
    pub rate_limits: ArcSwap<RateLimits>,
    pub watch_report: WatchReport,
    pub deleted: DeletedPosts,
    pub profile: Profile,
    pub snapshot_cache: CacheCounter,
    pub candidates_cache: CacheCounter,
    pub fallbacks: FallbackRatio,
    pub pings: Pings,
    /// One lock for each viewer whose candidates are being fetched.
    pub flights: moka::sync::Cache<u64, Arc<tokio::sync::Mutex<()>>>,
    pub started: Instant,
    /// Set when the host begins to stop. It is then live but not ready.
    pub stopping: AtomicBool,
    live: ArcSwap<Live>,
    attributes: Cache<u64, Option<Arc<ViewerAttributes>>>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Dependencies that are constructed outside of this module.
#[derive(Debug)]
pub struct Parts {
    pub config: Config,
    pub deploy: Arc<Deploy>,
    pub policy_pool: CpuPool,
    pub spool: Spool,
    pub exposures: Exposures,
    pub recorder: Recorder,
    pub shadows: Shadows,
    pub token_keys: TokenKeys,
    pub cursor_key: CursorKey,
    pub watch_report: WatchReport,
}

/// Time after which an unused lock is removed. A fetch ends within the deadlines of its sources,
/// so a lock that is idle for longer protects nothing.
const FLIGHT_IDLE: Duration = Duration::from_secs(60);
/// Largest number of concurrent calls to the cache.
const INVALIDATE_PARALLEL: usize = 64;
/// Time after which cohorts see a changed user row.
const ATTRIBUTES_LIFE: Duration = Duration::from_secs(60);

impl App {
    pub fn new(parts: Parts, stores: StoreSet) -> Arc<Self> {
        let live = parts.config.live.clone();
        Arc::new(Self {
            trending: Trending::new(stores.candidates.clone(), stores.values.clone()),
            suggestions: Suggestions::new(stores.candidates.clone(), stores.values.clone()),
            rate_limits: ArcSwap::from_pointee(RateLimits::new(&live.limits)),
            live: ArcSwap::from_pointee(live),
            config: parts.config,
            stores,
            deploy: parts.deploy,
            policy_pool: parts.policy_pool,
            spool: parts.spool,
            exposures: parts.exposures,
            recorder: parts.recorder,
            shadows: parts.shadows,
            token_keys: parts.token_keys,
            cursor_key: parts.cursor_key,
            watch_report: parts.watch_report,
            deleted: DeletedPosts::default(),
            profile: Profile::default(),
            snapshot_cache: CacheCounter::new("snapshot"),
            candidates_cache: CacheCounter::new("candidates"),
            fallbacks: FallbackRatio::default(),
            pings: Pings::default(),
            flights: moka::sync::Cache::builder()
                .max_capacity(1_000_000)
                .time_to_idle(FLIGHT_IDLE)
                .build(),
            attributes: Cache::builder()
                .max_capacity(200_000)
                .time_to_live(ATTRIBUTES_LIFE)
                .build(),
            started: Instant::now(),
            stopping: AtomicBool::new(false),
        })
    }

    /// Returns the part of the configuration that may change while the host runs.
    pub fn live(&self) -> arc_swap::Guard<Arc<Live>> {
        self.live.load()
    }

    pub fn set_live(&self, live: Live) {
        // New limiters start with empty counts, so they are created only if the limits have
        // changed.
        if live.limits != self.live().limits {
            self.rate_limits
                .store(Arc::new(RateLimits::new(&live.limits)));
        }
        self.recorder.configure(&live.records);
        self.shadows.configure(&live);
        self.live.store(Arc::new(live));
    }

    /// Returns the configured flags, overridden by those that an operator has set.
    pub fn flags(&self) -> Flags {
        let mut flags = self.live().flags;
        let serving = self.deploy.serving();
        for (name, enabled) in &serving.state.flags {
            flags.set(name, *enabled);
        }
        flags
    }

    /// Returns the viewer's attributes. The result is `Known(None)` for an unknown viewer.
    pub async fn viewer_attributes(&self, viewer: u64) -> Lookup {
        let load = async {
            let attributes = self.stores.relational.viewer_attributes(viewer).await?;
            Ok::<_, StoreError>(attributes.map(Arc::new))
        };
        let timeout = Duration::from_millis(self.live().feed.timeline_timeout_ms);
        match guard::within(timeout, self.attributes.try_get_with(viewer, load)).await {
            Ok(Ok(attributes)) => Lookup::Known(attributes),
            Ok(Err(error)) => {
                tracing::warn!(%error, "could not read the viewer's attributes; cohorts that need them are skipped");
                Lookup::Unavailable
            }
            Err(_) => {
                tracing::warn!(
                    "the query for the viewer's attributes timed out; cohorts that need them are skipped"
                );
                Lookup::Unavailable
            }
        }
    }

    /// Invalidates the cached rankings of viewers, so that they read their own writes: a ranking
    /// made without the events of [`invalidating`](crate::events::drain::invalidating) viewers is no
    /// longer served to them. Called when the events are accepted, and again when they are
    /// counted.
    pub async fn invalidate(&self, viewers: BTreeSet<u64>) {
        futures::stream::iter(viewers)
            .for_each_concurrent(INVALIDATE_PARALLEL, |viewer| async move {
                if let Err(error) = self.stores.cache.invalidate(viewer).await {
                    tracing::warn!(%error, "could not invalidate a viewer's cached candidates; they may be served until they expire");
                }
            })
            .await;
    }

    /// Returns a callback for the code that counts events. It invalidates the viewers of the
    /// events that were counted.
    pub fn invalidate_counted(self: &Arc<Self>) -> Counted {
        let app = self.clone();
        Arc::new(move |viewers| {
            if !viewers.is_empty() {
                let app = app.clone();
                tokio::spawn(async move { app.invalidate(viewers).await });
            }
        })
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The `cache_operations_total` counters of one cache. They are looked up once.
#[derive(Debug)]
pub struct CacheCounter {
    hits: IntCounter,
    misses: IntCounter,
}

impl CacheCounter {
    pub fn new(cache: &str) -> Self {
        let operations = &METRICS.cache_operations_total;
        Self {
            hits: operations.with_label_values(&[cache, "hit"]),
            misses: operations.with_label_values(&[cache, "miss"]),
        }
    }

    pub fn count(&self, hit: bool) {
        if hit {
            self.hits.inc()
        } else {
            self.misses.inc()
        }
    }
}

/// Share of feeds that fell back to the timeline. The counts start again after every 1,000
/// feeds.
#[derive(Debug, Default)]
pub struct FallbackRatio {
    feeds: AtomicUsize,
    fallbacks: AtomicUsize,
}

impl FallbackRatio {
    const WINDOW: usize = 1_000;

    pub fn count(&self, fallback: bool) {
        let fallbacks = self
            .fallbacks
            .fetch_add(usize::from(fallback), Ordering::Relaxed)
            + usize::from(fallback);
        let feeds = self.feeds.fetch_add(1, Ordering::Relaxed) + 1;
        METRICS.fallback_ratio.set(fallbacks as f64 / feeds as f64);
        if feeds >= Self::WINDOW {
            self.feeds.store(0, Ordering::Relaxed);
            self.fallbacks.store(0, Ordering::Relaxed);
        }
    }
}
