//! How a feed request is answered, from first to last. The branches are here; what they decide on is below.

use super::candidates::{Fetched, fetch};
use super::cursor::Cursor;
use super::ladder::{Job, Ranked, last_good, rank_down};
use super::page::{FeedPage, page};
use super::snapshot::{Algo, CachedCandidates, ServedBy, ServedPolicy, Snapshot, ranked_posts};
use super::timeline;
use crate::app::App;
use crate::clock::unix_ms;
use crate::experiments::exposure;
use crate::experiments::routing::{Assignment, Lookup, Route, route};
use crate::metrics::METRICS;
use crate::policy::Digest;
use crate::policy::deploy::Serving;
use crate::policy::features::CandidateSet;
use crate::stores::Seen;
use nova_policy_sdk::Request;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What a viewer asks for.
#[derive(Debug)]
pub struct Ask {
    pub viewer: u64,
    pub algo: Algo,
    pub limit: usize,
    pub cursor: Option<Cursor>,
    pub request_id: Arc<str>,
    /// `App::interactions_of` the viewer when the request began.
    pub interactions: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The snapshot of a cursor is no more; the client starts again.
    #[error("the ranking this cursor continues is no longer kept; ask again without a cursor")]
    CursorExpired,
    #[error("no feed can be served right now")]
    Unavailable,
}

/// A finished ranking that is not yet a snapshot.
struct Made {
    algo: Algo,
    served_by: ServedBy,
    fallback: bool,
    policy: ServedPolicy,
    assignment: Option<Assignment>,
    posts: Vec<super::snapshot::SnapshotPost>,
    degraded: Vec<String>,
    seen_version: u64,
    cache_hit: bool,
}

/// Answers a feed request.
///
/// # Errors
/// An expired cursor; or nothing at all could be served, not even a timeline.
pub async fn serve(app: &App, ask: &Ask) -> Result<FeedPage, FeedError> {
    if let Some(cursor) = ask.cursor {
        return continue_snapshot(app, cursor, ask.limit).await;
    }
    let flags = app.flags();
    let serving = app.deploy.serving().clone();
    if ask.algo == Algo::Timeline || !flags.use_ch_ranking {
        return serve_timeline(app, ask, flags.enable_caching).await;
    }
    let (routed, attributes_missing) = pick_policy(app, &serving, ask.viewer).await;
    let seen = read_seen(app, ask.viewer).await;
    if flags.enable_caching
        && let Some(seen) = &seen
        && let Some(snapshot) =
            fresh_snapshot(app, ask.viewer, routed.policy.effective_digest, seen).await
        // Who starts or stops an experiment changes what a ranking counts for, also where it looks the same.
        && snapshot.assignment == routed.assignment
    {
        return Ok(page(snapshot, &app.cursor_key, 0, ask.limit, true));
    }
    let mut missing: Vec<String> = Vec::new();
    if seen.is_none() || attributes_missing {
        missing.push(app.stores.relational.name().to_owned());
    }
    let seen = seen.unwrap_or_default();
    let candidates = candidates(app, ask.viewer, ask.interactions, flags.enable_caching).await;
    missing.extend(candidates.degraded.iter().map(|store| (*store).to_owned()));
    missing.sort();
    missing.dedup();
    match candidates.set {
        Some(set) => {
            match rank_candidates(app, ask, &serving, routed, set, &seen, &mut missing).await {
                Some(made) => Ok(keep(
                    app,
                    ask,
                    Made {
                        cache_hit: candidates.cache_hit,
                        ..made
                    },
                )
                .await),
                None => fall_back(app, ask, &seen, missing, flags.enable_fallback).await,
            }
        }
        None => fall_back(app, ask, &seen, missing, flags.enable_fallback).await,
    }
}

/// Page two and later: the ranking the viewer began with, whatever has changed since.
async fn continue_snapshot(app: &App, cursor: Cursor, limit: usize) -> Result<FeedPage, FeedError> {
    match app.stores.cache.snapshot(cursor.ranking_id).await {
        Ok(Some(snapshot)) => Ok(page(
            snapshot,
            &app.cursor_key,
            cursor.position as usize,
            limit,
            true,
        )),
        Ok(None) => Err(FeedError::CursorExpired),
        Err(error) => {
            tracing::warn!(%error, "snapshot cache");
            Err(FeedError::Unavailable)
        }
    }
}

/// The policy for a viewer, and whether the viewer's attributes were missing for the choice.
async fn pick_policy(app: &App, serving: &Serving, viewer: u64) -> (Route, bool) {
    let attributes = if serving.needs_attributes {
        app.viewer_attributes(viewer).await
    } else {
        Lookup::Known(None)
    };
    let routed = route(
        &serving.experiments,
        &serving.active,
        viewer,
        &attributes,
        unix_ms(),
    );
    (routed, matches!(attributes, Lookup::Unavailable))
}

/// `None` when the filter does not answer in time: better a post seen twice than no feed.
async fn read_seen(app: &App, viewer: u64) -> Option<Arc<Seen>> {
    let timeout = Duration::from_millis(app.live().feed.timeline_timeout_ms);
    match tokio::time::timeout(timeout, app.stores.seen.seen(viewer)).await {
        Ok(seen) => seen
            .inspect_err(|error| tracing::warn!(%error, "seen posts"))
            .ok(),
        Err(_) => {
            tracing::warn!("seen posts came too late");
            None
        }
    }
}

/// The same ranking again: same viewer, same effective digest, young enough, nothing seen since, and whole.
async fn fresh_snapshot(
    app: &App,
    viewer: u64,
    digest: Digest,
    seen: &Seen,
) -> Option<Arc<Snapshot>> {
    let ttl = app.live().ttl.snapshot();
    let found = app
        .stores
        .cache
        .latest_snapshot(viewer, digest)
        .await
        .unwrap_or_default();
    let fresh = found.filter(|snapshot| {
        snapshot.created.elapsed() <= ttl
            && snapshot.seen_version == seen.version
            && snapshot.degraded.is_empty()
    });
    app.snapshot_cache.count(fresh.is_some());
    fresh
}

/// A viewer's candidates, from the cache or the stores.
struct Candidates {
    /// `None`: no source answered.
    set: Option<Arc<CandidateSet>>,
    degraded: Vec<&'static str>,
    cache_hit: bool,
}

async fn candidates(app: &App, viewer: u64, interactions: u64, use_cache: bool) -> Candidates {
    let hit = |cached: Arc<CachedCandidates>| Candidates {
        set: Some(cached.set.clone()),
        degraded: Vec::new(),
        cache_hit: true,
    };
    if !use_cache {
        return fetched(app, viewer).await.0;
    }
    if let Some(cached) = cached_candidates(app, viewer).await {
        app.candidates_cache.count(true);
        return hit(cached);
    }
    // Of many requests that miss together, one asks the stores and the others take what it found.
    let flight = app.flights.get_with(viewer, Arc::default);
    // Whoever has waited as long as a source may take does not wait behind the next one as well.
    let patience = Duration::from_millis(app.live().feed.source_timeout_ms);
    let _turn = tokio::time::timeout(patience, flight.lock()).await.ok();
    let cached = cached_candidates(app, viewer).await;
    app.candidates_cache.count(cached.is_some());
    match cached {
        Some(cached) => hit(cached),
        None => {
            let (candidates, cacheable) = fetched(app, viewer).await;
            // A like that was accepted while the stores were asked may be missing from what they said.
            if let Some(cacheable) =
                cacheable.filter(|_| app.interactions_of(viewer) == interactions)
                && let Err(error) = app.stores.cache.put_candidates(viewer, cacheable).await
            {
                tracing::warn!(%error, "candidate cache");
            }
            candidates
        }
    }
}

async fn cached_candidates(app: &App, viewer: u64) -> Option<Arc<CachedCandidates>> {
    let ttl = app.live().ttl.candidates();
    app.stores
        .cache
        .candidates(viewer)
        .await
        .unwrap_or_default()
        .filter(|cached| cached.fetched.elapsed() <= ttl)
}

/// Asks the stores. What they gave is worth caching only if nothing is missing from it.
async fn fetched(app: &App, viewer: u64) -> (Candidates, Option<Arc<CachedCandidates>>) {
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
    (
        Candidates {
            set: (!failed).then_some(set),
            degraded,
            cache_hit: false,
        },
        cacheable,
    )
}

async fn rank_candidates(
    app: &App,
    ask: &Ask,
    serving: &Serving,
    routed: Route,
    set: Arc<CandidateSet>,
    seen: &Seen,
    missing: &mut Vec<String>,
) -> Option<Made> {
    let job = rank_job(ask, set, seen);
    let second = last_good(&routed.policy, serving);
    let budget = Duration::from_millis(app.live().feed.policy_budget_ms);
    let Some(Ranked {
        ranking,
        policy,
        served_by,
    }) = rank_down(&app.policy_pool, routed.policy, second, job.clone(), budget).await
    else {
        missing.push("policy".to_owned());
        return None;
    };
    METRICS
        .dedup_posts_removed_total
        .inc_by(ranking.removed.into());
    METRICS.saturation_moves_total.inc_by(ranking.moved.into());
    if served_by != ServedBy::Policy {
        missing.push("policy".to_owned());
    }
    Some(Made {
        algo: Algo::Ch,
        served_by,
        fallback: false,
        policy,
        assignment: routed.assignment,
        posts: ranked_posts(&job.set, &ranking, true),
        degraded: std::mem::take(missing),
        seen_version: seen.version,
        cache_hit: false,
    })
}

fn rank_job(ask: &Ask, set: Arc<CandidateSet>, seen: &Seen) -> Job {
    let now_ms = unix_ms();
    let request = Request {
        user_id: ask.viewer,
        now_ms,
        seed: rand::random(),
        limit: ask.limit as u32,
    };
    let seen = set
        .post_ids
        .iter()
        .map(|&post| seen.contains(post, now_ms))
        .collect();
    Job { request, set, seen }
}

/// No ranking could be made: the viewer's newest snapshot, else the timeline, else nothing.
async fn fall_back(
    app: &App,
    ask: &Ask,
    seen: &Seen,
    missing: Vec<String>,
    enable_fallback: bool,
) -> Result<FeedPage, FeedError> {
    if let Ok(Some(snapshot)) = app.stores.cache.newest_snapshot(ask.viewer).await {
        let page = page(snapshot, &app.cursor_key, 0, ask.limit, false);
        return Ok(FeedPage {
            degraded: missing,
            is_stand_in: true,
            ..page
        });
    }
    if !enable_fallback {
        return Err(FeedError::Unavailable);
    }
    let made = make_timeline(app, ask, seen)
        .await
        .ok_or(FeedError::Unavailable)?;
    let mut degraded: Vec<String> = missing
        .into_iter()
        .chain(made.degraded.iter().cloned())
        .collect();
    degraded.sort();
    degraded.dedup();
    Ok(keep(
        app,
        ask,
        Made {
            fallback: true,
            degraded,
            ..made
        },
    )
    .await)
}

/// The timeline because it was asked for.
async fn serve_timeline(app: &App, ask: &Ask, use_cache: bool) -> Result<FeedPage, FeedError> {
    let seen = read_seen(app, ask.viewer).await;
    let unfiltered = seen.is_none();
    let seen = seen.unwrap_or_default();
    let digest = ServedPolicy::native(Algo::Timeline).effective_digest;
    if use_cache && let Some(snapshot) = fresh_snapshot(app, ask.viewer, digest, &seen).await {
        return Ok(page(snapshot, &app.cursor_key, 0, ask.limit, true));
    }
    let mut made = make_timeline(app, ask, &seen)
        .await
        .ok_or(FeedError::Unavailable)?;
    if unfiltered && made.degraded.is_empty() {
        made.degraded.push(app.stores.relational.name().to_owned());
    }
    Ok(keep(app, ask, made).await)
}

async fn make_timeline(app: &App, ask: &Ask, seen: &Seen) -> Option<Made> {
    let timeout = Duration::from_millis(app.live().feed.timeline_timeout_ms);
    let timeline = timeline::fetch(&app.stores, ask.viewer, unix_ms(), timeout).await?;
    let job = rank_job(ask, Arc::new(timeline.set), seen);
    let ranking = timeline::rank(&job)?;
    Some(Made {
        algo: Algo::Timeline,
        served_by: ServedBy::Timeline,
        fallback: false,
        policy: ServedPolicy::native(Algo::Timeline),
        assignment: None,
        posts: ranked_posts(&job.set, &ranking, false),
        degraded: timeline.degraded,
        seen_version: seen.version,
        cache_hit: false,
    })
}

/// Makes a ranking a snapshot, records that it was served, and cuts its first page.
async fn keep(app: &App, ask: &Ask, made: Made) -> FeedPage {
    let cache_hit = made.cache_hit;
    let snapshot = Arc::new(Snapshot {
        ranking_id: Uuid::now_v7(),
        viewer: ask.viewer,
        algo: made.algo,
        served_by: made.served_by,
        fallback: made.fallback,
        degraded: made.degraded,
        policy: made.policy,
        assignment: made.assignment,
        created: Instant::now(),
        created_at_ms: unix_ms(),
        seen_version: made.seen_version,
        posts: made.posts,
        first_page: OnceLock::new(),
    });
    // A ranking that was overtaken by its viewer's own like is served, and is nobody's cached answer.
    let reusable = app.interactions_of(ask.viewer) == ask.interactions;
    if let Err(error) = app
        .stores
        .cache
        .put_snapshot(snapshot.clone(), reusable)
        .await
    {
        tracing::warn!(%error, "snapshot cache");
    }
    app.exposures
        .record(exposure::of(&snapshot, &ask.request_id));
    page(snapshot, &app.cursor_key, 0, ask.limit, cache_hit)
}
