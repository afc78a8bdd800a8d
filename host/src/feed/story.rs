//! The steps of a feed request, from first to last. The branches are here; the functions that they
//! call decide.
//!
//! The order of the answers is here too: a cursor's snapshot; else the viewer's fresh snapshot;
//! else a new ranking of cached candidates, or of candidates from the stores; else the viewer's
//! newest snapshot; else the timeline; else an error.

use super::Feed;
use super::cached_candidates::{Candidates, candidates};
use super::decision::Decision;
use super::degraded::DegradedParts;
use super::fallback_chain::{Chain, Ranked, RankingTask, rank_in_order};
use super::page::FeedPage;
use super::ranked_feed::{RankedFeed, ranked_posts};
use super::request::{FeedError, FeedRequest};
use super::snapshots::{continue_snapshot, first_page, fresh_snapshot, keep};
use super::timeline;
use nova_control::deploy::Serving;
use nova_control::routing::{Lookup, Route, route};
use nova_model::features::CandidateSet;
use nova_model::snapshot::{Algo, ServedBy, ServedPolicy};
use nova_policy_sdk::Request;
use nova_stores::guard;
use nova_stores::ports::SeenAmong;
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Serves a feed request.
///
/// # Errors
/// The cursor has expired, or nothing could be served, not even a timeline.
pub async fn serve(feed: &Feed, request: &FeedRequest) -> Result<FeedPage, FeedError> {
    if let Some(cursor) = request.cursor {
        return continue_snapshot(feed, cursor, request.limit).await;
    }
    let flags = feed.flags();
    let serving = feed.parts.deploy.serving().clone();
    if request.algo == Algo::Timeline || !flags.use_ch_ranking {
        return serve_timeline(feed, request, flags.enable_caching).await;
    }
    let (route, route_degraded) = pick_policy(feed, &serving, request.viewer).await;
    if flags.enable_caching
        && let Some(policy) = &route.policy
        && let Some(snapshot) = fresh_snapshot(feed, request.viewer, policy.effective_digest).await
        // Starting or stopping an experiment changes the assignment that a ranking counts for,
        // even if the ranking is the same.
        && snapshot.assignment == route.assignment
    {
        return Ok(first_page(feed, snapshot, request.limit, true));
    }
    let found = candidates(feed, request.viewer, flags.enable_caching).await;
    let found = found.with_degraded(route_degraded);
    let epoch = found.epoch;
    match rank_candidates(feed, request, &serving, route, found).await {
        Ok(ranked) => Ok(keep(feed, request, ranked).await),
        Err(degraded) => fall_back(feed, request, epoch, degraded, flags.enable_fallback).await,
    }
}

/// Returns the route for a viewer. Degraded if it had to be chosen without the viewer's
/// attributes.
async fn pick_policy(feed: &Feed, serving: &Serving, viewer: u64) -> (Route, DegradedParts) {
    let attributes = if serving.needs_attributes {
        feed.attributes
            .of_viewer(viewer, feed.store_timeout())
            .await
    } else {
        Lookup::Known(None)
    };
    let route = route(
        &serving.experiments,
        serving.canary.as_ref(),
        serving.active_in_service(),
        viewer,
        &attributes,
        unix_ms(),
    );
    let degraded = match attributes {
        Lookup::Unavailable => feed.stores().relational.name().into(),
        Lookup::Known(_) => DegradedParts::default(),
    };
    (route, degraded)
}

/// Returns the posts that the viewer has seen. If the seen filter does not answer in time, it
/// counts as degraded and nothing is marked as seen: a post shown twice is better than no feed.
async fn read_seen(feed: &Feed, viewer: u64, posts: &[u64]) -> (SeenAmong, DegradedParts) {
    let filter = &feed.stores().seen;
    let lookup = filter.among(viewer, posts, unix_ms());
    let failure = match guard::within(feed.store_timeout(), lookup).await {
        Ok(Ok(seen)) => return (seen, DegradedParts::default()),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "too late".to_owned(),
    };
    tracing::warn!(
        error = failure,
        "could not read the viewer's seen posts; ranking as if none was seen"
    );
    let nothing = SeenAmong {
        version: 0,
        seen: vec![false; posts.len()],
    };
    (nothing, filter.name().into())
}

/// Ranks the candidates with the fallback chain, and offers the decision to the recorder and the
/// shadow policies.
///
/// # Errors
/// The parts that were missing, if there are no candidates or even the native ranker failed.
async fn rank_candidates(
    feed: &Feed,
    request: &FeedRequest,
    serving: &Serving,
    route: Route,
    found: Candidates,
) -> Result<RankedFeed, DegradedParts> {
    let Some(set) = found.set else {
        return Err(found.degraded);
    };
    let (seen, seen_degraded) = read_seen(feed, request.viewer, &set.post_ids).await;
    let degraded = found.degraded.union(seen_degraded);
    let seen_version = seen.version;
    let task = ranking_task(request, set, seen);
    let chain = Chain::new(route.policy.clone(), serving, feed.parts.failures.clone());
    let second = chain.last_good.clone();
    let budget = Duration::from_millis(feed.live().feed.policy_budget_ms);
    let pool = &feed.parts.policy_pool;
    let Some(ranked) = rank_in_order(pool, chain, task.clone(), budget).await else {
        return Err(degraded.union("policy".into()));
    };
    count_moves(&ranked);
    let policy_degraded = (ranked.served_by != ServedBy::Policy).then_some("policy");
    let ranked_feed = RankedFeed {
        ranking_id: Uuid::now_v7(),
        algo: Algo::Ranked,
        served_by: ranked.served_by,
        fallback: false,
        policy: ranked.policy.clone(),
        assignment: route.assignment.clone(),
        posts: ranked_posts(&task.set, &ranked.ranking, true),
        degraded: degraded.union(policy_degraded.into()),
        seen_version,
        epoch: found.epoch,
        cache_hit: found.cache_hit,
    };
    let decision = Arc::new(Decision {
        ranking_id: ranked_feed.ranking_id,
        request_id: request.request_id.clone(),
        routed: route.policy,
        last_good: second,
        assignment: route.assignment,
        task,
        ranked,
    });
    feed.parts.recorder.offer(&decision);
    feed.parts.shadows.offer(&serving.shadows, &decision);
    Ok(ranked_feed)
}

fn count_moves(ranked: &Ranked) {
    let ranking = &ranked.ranking;
    METRICS
        .dedup_posts_removed_total
        .inc_by(ranking.removed.into());
    METRICS.saturation_moves_total.inc_by(ranking.moved.into());
}

fn ranking_task(request: &FeedRequest, set: Arc<CandidateSet>, seen: SeenAmong) -> RankingTask {
    let request = Request {
        user_id: request.viewer,
        now_ms: unix_ms(),
        seed: rand::random(),
        limit: request.limit as u32,
    };
    RankingTask {
        request,
        set,
        seen: seen.seen,
    }
}

/// Serves a request for which no ranking could be made: from the viewer's newest snapshot, else
/// from the timeline, else an error.
async fn fall_back(
    feed: &Feed,
    request: &FeedRequest,
    epoch: Option<u64>,
    degraded: DegradedParts,
    enable_fallback: bool,
) -> Result<FeedPage, FeedError> {
    let cache = &feed.stores().cache;
    let degraded = match cache.newest_snapshot(request.viewer).await {
        Ok(Some(snapshot)) => {
            return Ok(FeedPage {
                degraded: degraded.names(),
                is_stand_in: true,
                ..first_page(feed, snapshot, request.limit, false)
            });
        }
        Ok(None) => degraded,
        Err(_) => degraded.union(cache.name().into()),
    };
    if !enable_fallback {
        return Err(FeedError::Unavailable);
    }
    let ranked = rank_timeline(feed, request, epoch, Some(degraded)).await?;
    Ok(keep(feed, request, ranked).await)
}

/// Serves the timeline as the requested algorithm, not as a fallback.
async fn serve_timeline(
    feed: &Feed,
    request: &FeedRequest,
    use_cache: bool,
) -> Result<FeedPage, FeedError> {
    let digest = ServedPolicy::native(Algo::Timeline).effective_digest;
    if use_cache && let Some(snapshot) = fresh_snapshot(feed, request.viewer, digest).await {
        return Ok(first_page(feed, snapshot, request.limit, true));
    }
    let epoch = feed.stores().cache.epoch(request.viewer).await.ok();
    let ranked = rank_timeline(feed, request, epoch, None).await?;
    Ok(keep(feed, request, ranked).await)
}

/// Fetches and ranks the timeline. `instead_of` has the parts that a ranking failed for, if the
/// timeline is served in its place.
///
/// # Errors
/// The relational store did not answer in time, or the native ranker failed.
async fn rank_timeline(
    feed: &Feed,
    request: &FeedRequest,
    epoch: Option<u64>,
    instead_of: Option<DegradedParts>,
) -> Result<RankedFeed, FeedError> {
    let timeout = feed.store_timeout();
    let timeline = timeline::fetch(feed.stores(), request.viewer, unix_ms(), timeout).await;
    let timeline = timeline.ok_or(FeedError::Unavailable)?;
    let (seen, seen_degraded) = read_seen(feed, request.viewer, &timeline.set.post_ids).await;
    let seen_version = seen.version;
    let task = ranking_task(request, Arc::new(timeline.set), seen);
    let ranking = timeline::rank(&task).ok_or(FeedError::Unavailable)?;
    Ok(RankedFeed {
        ranking_id: Uuid::now_v7(),
        algo: Algo::Timeline,
        served_by: ServedBy::Timeline,
        fallback: instead_of.is_some(),
        policy: ServedPolicy::native(Algo::Timeline),
        assignment: None,
        posts: ranked_posts(&task.set, &ranking, false),
        degraded: instead_of
            .unwrap_or_default()
            .union(timeline.degraded)
            .union(seen_degraded),
        seen_version,
        epoch,
        cache_hit: false,
    })
}
