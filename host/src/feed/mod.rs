//! The feed: the steps of a request (`story`), the service that they run on, and the pure parts
//! that they use.

mod attributes;
pub mod cached_candidates;
pub mod candidates;
mod counters;
pub mod cursor;
pub mod decision;
mod degraded;
pub mod failures;
pub mod fallback_chain;
pub mod page;
pub mod preview;
mod ranked_feed;
pub mod request;
pub mod shadow;
mod snapshots;
pub mod story;
pub mod timeline;

use crate::config::{Flags, Live, SharedLive};
use crate::experiments::exposure::Exposures;
use crate::flights::Flights;
use crate::replay::recorder::Recorder;
use attributes::Attributes;
use counters::{CacheCounter, FallbackRatio};
use cursor::CursorKey;
use failures::SharedFailureLog;
use nova_control::deploy::Deploy;
use nova_model::deleted::DeletedPosts;
use nova_policy::pool::CpuPool;
use nova_stores::ports::{CandidateStore, FeedCache, RelationalStore, SeenPosts};
use shadow::Shadows;
use std::sync::Arc;
use std::time::Duration;

/// Largest number of viewers whose candidates are fetched at the same time.
const FLIGHTS_MAX: u64 = 1_000_000;

/// The stores that a feed is served from.
#[derive(Clone)]
pub struct FeedStores {
    pub candidates: Arc<dyn CandidateStore>,
    pub relational: Arc<dyn RelationalStore>,
    pub cache: Arc<dyn FeedCache>,
    pub seen: Arc<dyn SeenPosts>,
}

impl std::fmt::Debug for FeedStores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FeedStores").finish_non_exhaustive()
    }
}

/// Dependencies of the feed that are constructed outside of this module.
#[derive(Debug)]
pub struct FeedParts {
    pub stores: FeedStores,
    pub deploy: Arc<Deploy>,
    pub policy_pool: CpuPool,
    pub exposures: Exposures,
    pub recorder: Recorder,
    pub shadows: Shadows,
    pub failures: Arc<SharedFailureLog>,
    pub cursor_key: CursorKey,
}

/// Everything that a feed request uses.
#[derive(Debug)]
pub struct Feed {
    pub parts: FeedParts,
    pub deleted: DeletedPosts,
    pub fallbacks: FallbackRatio,
    live: SharedLive,
    attributes: Attributes,
    flights: Flights,
    snapshot_cache: CacheCounter,
    candidates_cache: CacheCounter,
}

impl Feed {
    pub fn new(parts: FeedParts, live: SharedLive) -> Self {
        Self {
            attributes: Attributes::new(parts.stores.relational.clone()),
            parts,
            live,
            deleted: DeletedPosts::default(),
            fallbacks: FallbackRatio::default(),
            flights: Flights::new(FLIGHTS_MAX),
            snapshot_cache: CacheCounter::new("snapshot"),
            candidates_cache: CacheCounter::new("candidates"),
        }
    }

    /// Returns the configured flags, overridden by those that an operator has set.
    pub fn flags(&self) -> Flags {
        let mut flags = self.live().flags;
        let serving = self.parts.deploy.serving();
        for (name, enabled) in &serving.state.flags {
            flags.set(name, *enabled);
        }
        flags
    }

    fn live(&self) -> arc_swap::Guard<Arc<Live>> {
        self.live.load()
    }

    fn stores(&self) -> &FeedStores {
        &self.parts.stores
    }

    /// Deadline of one call to the relational store, the feed cache or the seen filter.
    fn store_timeout(&self) -> Duration {
        Duration::from_millis(self.live().feed.timeline_timeout_ms)
    }

    /// Deadline of one candidate source.
    fn source_timeout(&self) -> Duration {
        Duration::from_millis(self.live().feed.source_timeout_ms)
    }
}
