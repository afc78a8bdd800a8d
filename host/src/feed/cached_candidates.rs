//! A viewer's candidates: out of the cache, or asked for by one request for all that miss together, and kept.

use super::candidates::{Fetched, fetch};
use super::snapshot::CachedCandidates;
use crate::app::App;
use crate::clock::unix_ms;
use crate::policy::features::CandidateSet;
use crate::stores::StoreResult;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A viewer's candidates, from the cache or the stores.
#[derive(Debug)]
pub struct Candidates {
    /// `None`: no source answered.
    pub set: Option<Arc<CandidateSet>>,
    pub degraded: Vec<&'static str>,
    /// The viewer's epoch before anything was asked; `None` where it could not be read.
    pub epoch: Option<u64>,
    pub cache_hit: bool,
}

/// Never fails: what is missing is named.
pub async fn candidates(app: &App, viewer: u64, use_cache: bool) -> Candidates {
    if !use_cache {
        let epoch = app.stores.cache.epoch(viewer).await.ok();
        return fetched(app, viewer, epoch).await.0;
    }
    match look_up(app, viewer).await {
        // Without the cache there is nobody to wait for: each request asks for itself.
        Err(_) => {
            app.candidates_cache.count(false);
            let (mut candidates, _) = fetched(app, viewer, None).await;
            candidates.degraded.push(app.stores.cache.name());
            candidates
        }
        Ok(Lookup::Hit(candidates)) => {
            app.candidates_cache.count(true);
            candidates
        }
        Ok(Lookup::Miss { .. }) => candidates_in_turn(app, viewer).await,
    }
}

/// Of many requests that miss together, one asks the stores and the others take what it found.
async fn candidates_in_turn(app: &App, viewer: u64) -> Candidates {
    let flight = app.flights.get_with(viewer, Arc::default);
    // Whoever has waited as long as a source may take does not wait behind the next one as well.
    let patience = Duration::from_millis(app.live().feed.source_timeout_ms);
    let _turn = tokio::time::timeout(patience, flight.lock()).await.ok();
    let epoch = match look_up(app, viewer).await {
        Ok(Lookup::Hit(candidates)) => {
            app.candidates_cache.count(true);
            return candidates;
        }
        Ok(Lookup::Miss { epoch }) => Some(epoch),
        Err(_) => None,
    };
    app.candidates_cache.count(false);
    let (mut candidates, cacheable) = fetched(app, viewer, epoch).await;
    if epoch.is_none() {
        candidates.degraded.push(app.stores.cache.name());
    }
    // A like that was accepted while the stores were asked may be missing from what they said: its epoch is over.
    if let (Some(cacheable), Some(epoch)) = (cacheable, epoch)
        && let Err(error) = app
            .stores
            .cache
            .put_candidates(viewer, epoch, cacheable, app.live().ttl.candidates())
            .await
    {
        tracing::warn!(%error, "candidate cache");
    }
    candidates
}

/// Renews a viewer's cached candidates before they are half as old as they may become. Nothing is ranked,
/// nothing is recorded. `false` when they could not be had or kept whole.
pub async fn warm(app: &App, viewer: u64) -> bool {
    let ttl = app.live().ttl.candidates();
    let Ok(found) = app.stores.cache.candidates(viewer).await else {
        return false;
    };
    let fresh = |cached: &Arc<CachedCandidates>| cached.fetched.elapsed() <= ttl / 2;
    if found.candidates.as_ref().is_some_and(fresh) {
        return true;
    }
    let (_, cacheable) = fetched(app, viewer, Some(found.epoch)).await;
    match cacheable {
        None => false,
        Some(cacheable) => {
            let cache = &app.stores.cache;
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

async fn look_up(app: &App, viewer: u64) -> StoreResult<Lookup> {
    let ttl = app.live().ttl.candidates();
    let found = app
        .stores
        .cache
        .candidates(viewer)
        .await
        .inspect_err(|error| tracing::warn!(%error, "candidate cache"))?;
    let fresh = found
        .candidates
        .filter(|cached| cached.fetched.elapsed() <= ttl);
    Ok(match fresh {
        Some(cached) => Lookup::Hit(Candidates {
            set: Some(cached.set.clone()),
            degraded: Vec::new(),
            epoch: Some(found.epoch),
            cache_hit: true,
        }),
        None => Lookup::Miss { epoch: found.epoch },
    })
}

/// Asks the stores. What they gave is worth caching only if nothing is missing from it.
async fn fetched(
    app: &App,
    viewer: u64,
    epoch: Option<u64>,
) -> (Candidates, Option<Arc<CachedCandidates>>) {
    let timeout = Duration::from_millis(app.live().feed.source_timeout_ms);
    let fetched_at = Instant::now();
    let Fetched {
        set,
        degraded,
        failed,
    } = fetch(app.stores.candidates.as_ref(), viewer, unix_ms(), timeout).await;
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
