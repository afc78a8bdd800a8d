//! The application state: every dependency that handlers share, constructed once.

use crate::config::{Config, Flags, Live, SharedLive};
use crate::discover::suggested::Suggestions;
use crate::discover::trending::Trending;
use crate::events::drain::Counted;
use crate::feed::{Feed, FeedParts};
use crate::http::limits::RateLimits;
use crate::http::pings::Pings;
use crate::http::token::TokenKeys;
use crate::http::uploads::Uploads;
use crate::jobs::profile::Profile;
use crate::store_set::StoreSet;
use arc_swap::ArcSwap;
use futures::StreamExt as _;
use nova_control::deploy::Deploy;
use nova_control::watcher::WatchReport;
use nova_stores::spool::Spool;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

pub struct App {
    pub config: Config,
    pub stores: StoreSet,
    pub deploy: Arc<Deploy>,
    pub feed: Feed,
    pub spool: Spool,
    pub trending: Trending,
    pub suggestions: Suggestions,
    pub token_keys: TokenKeys,
    pub rate_limits: ArcSwap<RateLimits>,
    pub watch_report: WatchReport,
    pub profile: Arc<Profile>,
    pub pings: Pings,
    pub uploads: Uploads,
    pub started: Instant,
    /// Set when the host begins to stop. It is then live but not ready.
    pub stopping: AtomicBool,
    live: SharedLive,
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
    pub stores: StoreSet,
    pub feed: FeedParts,
    pub spool: Spool,
    pub token_keys: TokenKeys,
    pub watch_report: WatchReport,
}

/// Largest number of concurrent calls to the cache.
const INVALIDATE_PARALLEL: usize = 64;

impl App {
    pub fn new(parts: Parts) -> Arc<Self> {
        let stores = parts.stores;
        let live = SharedLive::new(parts.config.live.clone());
        Arc::new(Self {
            trending: Trending::new(stores.candidates.clone(), stores.values.clone()),
            suggestions: Suggestions::new(stores.candidates.clone(), stores.values.clone()),
            rate_limits: ArcSwap::from_pointee(RateLimits::new(&parts.config.live.limits)),
            deploy: parts.feed.deploy.clone(),
            feed: Feed::new(parts.feed, live.clone()),
            live,
            config: parts.config,
            stores,
            spool: parts.spool,
            token_keys: parts.token_keys,
            watch_report: parts.watch_report,
            profile: Arc::default(),
            pings: Pings::default(),
            uploads: Uploads::default(),
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
        self.feed.parts.recorder.configure(&live.records);
        self.feed.parts.shadows.configure(&live);
        self.live.store(live);
    }

    /// Returns the configured flags, overridden by those that an operator has set.
    pub fn flags(&self) -> Flags {
        self.feed.flags()
    }

    /// Invalidates the cached rankings of viewers, so that they read their own writes: a ranking
    /// made without the events of [`invalidating`](crate::events::drain::invalidating) viewers is
    /// no longer served to them. Called when the events are accepted, and again when they are
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
