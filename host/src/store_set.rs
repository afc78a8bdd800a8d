//! The stores of a host, whichever set it runs on.

use crate::feed::FeedStores;
use nova_stores::ports::{
    CandidateStore, EventSink, ExposureStore, FeedCache, Lease, RelationalStore, SeenPosts,
    ValueCache,
};
use nova_stores::redis::claims::RedisClaims;
use std::sync::Arc;

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

impl StoreSet {
    /// The stores that a feed is served from.
    pub fn of_feed(&self) -> FeedStores {
        FeedStores {
            candidates: self.candidates.clone(),
            relational: self.relational.clone(),
            cache: self.cache.clone(),
            seen: self.seen.clone(),
        }
    }
}
