//! A viewer's candidates: read from the cache, or fetched from the stores and then cached. If
//! several requests miss together, only one of them fetches.

use super::Feed;
use super::candidates::{Fetched, fetch};
use super::degraded::DegradedParts;
use nova_model::features::CandidateSet;
use nova_model::snapshot::CachedCandidates;
use nova_stores::ports::StoreResult;
use nova_support::clock::unix_ms;
use std::sync::Arc;
use std::time::Instant;

/// A viewer's candidates, from the cache or the stores.
#[derive(Debug)]
pub struct Candidates {
    /// `None` if no source answered.
    pub set: Option<Arc<CandidateSet>>,
    pub degraded: DegradedParts,
    /// The viewer's cache epoch, read before any store was queried. `None` if it could not be
    /// read.
    pub epoch: Option<u64>,
    pub cache_hit: bool,
}

impl Candidates {
    #[must_use]
    pub fn with_degraded(self, parts: DegradedParts) -> Self {
        Self {
            degraded: self.degraded.union(parts),
            ..self
        }
    }
}

/// Returns a viewer's candidates. Never fails: `degraded` names the parts that did not answer.
pub async fn candidates(feed: &Feed, viewer: u64, use_cache: bool) -> Candidates {
    if !use_cache {
        let epoch = feed.stores().cache.epoch(viewer).await.ok();
        return fetched(feed, viewer, epoch).await.0;
    }
    match look_up(feed, viewer).await {
        // Without the cache, requests cannot share one fetch, so each request queries the stores
        // itself.
        Err(_) => {
            feed.candidates_cache.count(false);
            let (candidates, _) = fetched(feed, viewer, None).await;
            candidates.with_degraded(feed.stores().cache.name().into())
        }
        Ok(Lookup::Hit(candidates)) => {
            feed.candidates_cache.count(true);
            candidates
        }
        Ok(Lookup::Miss { .. }) => candidates_fetched_once(feed, viewer).await,
    }
}

/// Lets one of several requests that miss together query the stores; the others use its result.
async fn candidates_fetched_once(feed: &Feed, viewer: u64) -> Candidates {
    // A request waits for the others at most as long as a source may take.
    let _flight = feed.flights.join(viewer, feed.source_timeout()).await;
    let epoch = match look_up(feed, viewer).await {
        Ok(Lookup::Hit(candidates)) => {
            feed.candidates_cache.count(true);
            return candidates;
        }
        Ok(Lookup::Miss { epoch }) => Some(epoch),
        Err(_) => None,
    };
    feed.candidates_cache.count(false);
    let (mut candidates, cacheable) = fetched(feed, viewer, epoch).await;
    if epoch.is_none() {
        candidates = candidates.with_degraded(feed.stores().cache.name().into());
    }
    // A like that was accepted during the fetch may be missing from the result. It also changed
    // the viewer's epoch, so the cache refuses this write.
    if let (Some(cacheable), Some(epoch)) = (cacheable, epoch)
        && let Err(error) = feed
            .stores()
            .cache
            .put_candidates(viewer, epoch, cacheable, feed.live().ttl.candidates())
            .await
    {
        tracing::warn!(%error, "could not write the candidate cache; serving without it");
    }
    candidates
}

/// Refreshes a viewer's cached candidates once they have reached half of their TTL. Ranks
/// nothing and records nothing. Returns `false` if the complete candidates could not be fetched
/// or cached.
pub async fn warm(feed: &Feed, viewer: u64) -> bool {
    let ttl = feed.live().ttl.candidates();
    let Ok(found) = feed.stores().cache.candidates(viewer).await else {
        return false;
    };
    let fresh = |cached: &Arc<CachedCandidates>| cached.fetched.elapsed() <= ttl / 2;
    if found.candidates.as_ref().is_some_and(fresh) {
        return true;
    }
    let (_, cacheable) = fetched(feed, viewer, Some(found.epoch)).await;
    match cacheable {
        None => false,
        Some(cacheable) => {
            let cache = &feed.stores().cache;
            cache
                .put_candidates(viewer, found.epoch, cacheable, ttl)
                .await
                .is_ok()
        }
    }
}

enum Lookup {
    Hit(Candidates),
    Miss { epoch: u64 },
}

async fn look_up(feed: &Feed, viewer: u64) -> StoreResult<Lookup> {
    let ttl = feed.live().ttl.candidates();
    let found = feed
        .stores()
        .cache
        .candidates(viewer)
        .await
        .inspect_err(|error| {
            tracing::warn!(%error, "could not read the candidate cache; asking the stores");
        })?;
    let fresh = found
        .candidates
        .filter(|cached| cached.fetched.elapsed() <= ttl);
    Ok(match fresh {
        Some(cached) => Lookup::Hit(Candidates {
            set: Some(cached.set.clone()),
            degraded: DegradedParts::default(),
            epoch: Some(found.epoch),
            cache_hit: true,
        }),
        None => Lookup::Miss { epoch: found.epoch },
    })
}

/// Fetches from the stores. The result is cacheable only if no part is missing.
async fn fetched(
    feed: &Feed,
    viewer: u64,
    epoch: Option<u64>,
) -> (Candidates, Option<Arc<CachedCandidates>>) {
    let timeout = feed.source_timeout();
    let fetched_at = Instant::now();
    let Fetched {
        set,
        degraded,
        failed,
    } = fetch(
        feed.stores().candidates.as_ref(),
        viewer,
        unix_ms(),
        timeout,
    )
    .await;
    let set = Arc::new(set);
    let cacheable = degraded.is_empty().then(|| {
        Arc::new(CachedCandidates {
            set: set.clone(),
            fetched: fetched_at,
        })
    });
    let candidates = Candidates {
        set: (!failed).then_some(set),
        degraded,
        epoch,
        cache_hit: false,
    };
    (candidates, cacheable)
}
