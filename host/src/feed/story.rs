//! The feed request from start to finish. This module makes the decisions; the modules that it
//! calls do the work.

use super::cached_candidates::candidates;
use super::cursor::Cursor;
use super::decision::Decision;
use super::ladder::{Job, Ranked, last_good, rank_down};
use super::page::{FeedPage, page};
use super::ranked_feed::ranked_posts;
use super::timeline;
use crate::app::App;
use crate::experiments::exposure;
use nova_control::deploy::Serving;
use nova_control::routing::{Lookup as Attributes, Route, route};
use nova_model::artifact::Digest;
use nova_model::experiments::Assignment;
use nova_model::features::CandidateSet;
use nova_model::snapshot::{Algo, ServedBy, ServedPolicy, Snapshot};
use nova_policy_sdk::Request;
use nova_stores::guard;
use nova_stores::ports::SeenAmong;
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A feed request of one viewer.
#[derive(Debug)]
pub struct Ask {
    pub viewer: u64,
    pub algo: Algo,
    pub limit: usize,
    pub cursor: Option<Cursor>,
    pub request_id: Arc<str>,
}

#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The cursor's snapshot has expired. The client has to start again without a cursor.
    #[error("the ranking this cursor continues is no longer kept; ask again without a cursor")]
    CursorExpired,
    #[error("no feed can be served right now")]
    Unavailable,
}

/// A finished ranking that is not yet stored as a snapshot.
struct Made {
    ranking_id: Uuid,
    algo: Algo,
    served_by: ServedBy,
    fallback: bool,
    policy: ServedPolicy,
    assignment: Option<Assignment>,
    posts: Vec<nova_model::snapshot::SnapshotPost>,
    degraded: Vec<String>,
    seen_version: u64,
    /// The viewer's cache epoch, read before any store was queried. `None` if it could not be
    /// read.
    epoch: Option<u64>,
    cache_hit: bool,
}

/// Serves a feed request.
///
/// # Errors
/// The cursor has expired, or nothing could be served, not even a timeline.
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
    if flags.enable_caching
        && let Some(policy) = &routed.policy
        && let Some(snapshot) = fresh_snapshot(app, ask.viewer, policy.effective_digest).await
        // Starting or stopping an experiment changes the assignment that a ranking counts for,
        // even if the ranking is the same.
        && snapshot.assignment == routed.assignment
    {
        return Ok(first_page(app, snapshot, ask.limit, true));
    }
    let mut missing = Missing::default();
    if attributes_missing {
        missing.add(app.stores.relational.name());
    }
    let candidates = candidates(app, ask.viewer, flags.enable_caching).await;
    missing.extend(&candidates.degraded);
    let (epoch, cache_hit) = (candidates.epoch, candidates.cache_hit);
    let made = match candidates.set {
        Some(set) => rank_candidates(app, ask, &serving, routed, set, &mut missing).await,
        None => None,
    };
    match made {
        Some(made) => {
            let made = Made {
                degraded: missing.names(),
                epoch,
                cache_hit,
                ..made
            };
            Ok(keep(app, ask, made).await)
        }
        None => fall_back(app, ask, epoch, missing, flags.enable_fallback).await,
    }
}

/// Names of the parts that did not answer during one request, without repeats.
#[derive(Debug, Default)]
struct Missing(BTreeSet<&'static str>);

impl Missing {
    fn add(&mut self, part: &'static str) {
        self.0.insert(part);
    }

    fn extend(&mut self, parts: &[&'static str]) {
        self.0.extend(parts);
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|part| (*part).to_owned()).collect()
    }
}

/// Serves page two and later from the snapshot of the first page, even if the policy or the data
/// have changed since.
async fn continue_snapshot(app: &App, cursor: Cursor, limit: usize) -> Result<FeedPage, FeedError> {
    match app.stores.cache.snapshot(cursor.ranking_id).await {
        Ok(Some(snapshot)) => Ok(page(
            snapshot,
            &app.cursor_key,
            &app.deleted.current(),
            cursor.position as usize,
            limit,
            true,
        )),
        Ok(None) => Err(FeedError::CursorExpired),
        Err(error) => {
            tracing::warn!(%error, "could not read a cursor's snapshot; answering 503");
            Err(FeedError::Unavailable)
        }
    }
}

/// Returns the route for a viewer, and true if the viewer's attributes were missing for the
/// choice.
async fn pick_policy(app: &App, serving: &Serving, viewer: u64) -> (Route, bool) {
    let attributes = if serving.needs_attributes {
        app.viewer_attributes(viewer).await
    } else {
        Attributes::Known(None)
    };
    let routed = route(
        &serving.experiments,
        serving.canary.as_ref(),
        serving.active_in_service(),
        viewer,
        &attributes,
        unix_ms(),
    );
    (routed, matches!(attributes, Attributes::Unavailable))
}

/// Returns the candidates that the viewer has seen. If the seen filter does not answer in time,
/// it counts as missing and nothing is marked as seen: a post shown twice is better than no
/// feed.
async fn read_seen(app: &App, viewer: u64, posts: &[u64], missing: &mut Missing) -> SeenAmong {
    let timeout = Duration::from_millis(app.live().feed.timeline_timeout_ms);
    let filter = &app.stores.seen;
    let answer = guard::within(timeout, filter.among(viewer, posts, unix_ms())).await;
    let failure = match answer {
        Ok(Ok(seen)) => return seen,
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "too late".to_owned(),
    };
    tracing::warn!(
        error = failure,
        "could not read the viewer's seen posts; ranking as if none was seen"
    );
    missing.add(filter.name());
    SeenAmong {
        version: 0,
        seen: vec![false; posts.len()],
    }
}

/// Returns the cached ranking of the same viewer and effective digest, if it is young enough and
/// complete and the viewer has seen no new post since.
async fn fresh_snapshot(app: &App, viewer: u64, digest: Digest) -> Option<Arc<Snapshot>> {
    let ttl = app.live().ttl.snapshot();
    let timeout = Duration::from_millis(app.live().feed.timeline_timeout_ms);
    let lookups = futures::future::join(
        app.stores.seen.version(viewer),
        app.stores.cache.latest_snapshot(viewer, digest),
    );
    let (seen_version, found) = guard::within(timeout, lookups).await.ok()?;
    let fresh = match (seen_version, found) {
        (Ok(seen_version), Ok(found)) => found.filter(|snapshot| {
            snapshot.created.elapsed() <= ttl
                && snapshot.seen_version == seen_version
                && snapshot.degraded.is_empty()
        }),
        _ => None,
    };
    app.snapshot_cache.count(fresh.is_some());
    fresh
}

async fn rank_candidates(
    app: &App,
    ask: &Ask,
    serving: &Serving,
    routed: Route,
    set: Arc<CandidateSet>,
    missing: &mut Missing,
) -> Option<Made> {
    let seen = read_seen(app, ask.viewer, &set.post_ids, missing).await;
    let seen_version = seen.version;
    let job = rank_job(ask, set, seen);
    let second = last_good(routed.policy.as_deref(), serving);
    let budget = Duration::from_millis(app.live().feed.policy_budget_ms);
    let pool = &app.policy_pool;
    let (first, then) = (routed.policy.clone(), second.clone());
    let Some(ranked) = rank_down(pool, first, then, job.clone(), budget).await else {
        missing.add("policy");
        return None;
    };
    let Ranked {
        ranking,
        policy,
        served_by,
    } = &ranked;
    METRICS
        .dedup_posts_removed_total
        .inc_by(ranking.removed.into());
    METRICS.saturation_moves_total.inc_by(ranking.moved.into());
    if *served_by != ServedBy::Policy {
        missing.add("policy");
    }
    let made = Made {
        ranking_id: Uuid::now_v7(),
        algo: Algo::Ranked,
        served_by: *served_by,
        fallback: false,
        policy: policy.clone(),
        assignment: routed.assignment.clone(),
        posts: ranked_posts(&job.set, ranking, true),
        degraded: Vec::new(),
        seen_version,
        epoch: None,
        cache_hit: false,
    };
    let decision = Arc::new(Decision {
        ranking_id: made.ranking_id,
        request_id: ask.request_id.clone(),
        routed: routed.policy,
        last_good: second,
        assignment: routed.assignment,
        job,
        ranked,
    });
    app.recorder.offer(&decision);
    app.shadows.offer(&serving.shadows, &decision);
    Some(made)
}

fn rank_job(ask: &Ask, set: Arc<CandidateSet>, seen: SeenAmong) -> Job {
    let request = Request {
        user_id: ask.viewer,
        now_ms: unix_ms(),
        seed: rand::random(),
        limit: ask.limit as u32,
    };
    Job {
        request,
        set,
        seen: seen.seen,
    }
}

/// Serves a request for which no ranking could be made: from the viewer's newest snapshot, else
/// from the timeline, else an error.
async fn fall_back(
    app: &App,
    ask: &Ask,
    epoch: Option<u64>,
    mut missing: Missing,
    enable_fallback: bool,
) -> Result<FeedPage, FeedError> {
    match app.stores.cache.newest_snapshot(ask.viewer).await {
        Ok(Some(snapshot)) => {
            let page = first_page(app, snapshot, ask.limit, false);
            return Ok(FeedPage {
                degraded: missing.names(),
                is_stand_in: true,
                ..page
            });
        }
        Ok(None) => {}
        Err(_) => missing.add(app.stores.cache.name()),
    }
    if !enable_fallback {
        return Err(FeedError::Unavailable);
    }
    let made = make_timeline(app, ask, &mut missing)
        .await
        .ok_or(FeedError::Unavailable)?;
    let made = Made {
        fallback: true,
        degraded: missing.names(),
        epoch,
        ..made
    };
    Ok(keep(app, ask, made).await)
}

/// Serves the timeline as the requested algorithm, not as a fallback.
async fn serve_timeline(app: &App, ask: &Ask, use_cache: bool) -> Result<FeedPage, FeedError> {
    let digest = ServedPolicy::native(Algo::Timeline).effective_digest;
    if use_cache && let Some(snapshot) = fresh_snapshot(app, ask.viewer, digest).await {
        return Ok(first_page(app, snapshot, ask.limit, true));
    }
    let epoch = app.stores.cache.epoch(ask.viewer).await.ok();
    let mut missing = Missing::default();
    let made = make_timeline(app, ask, &mut missing)
        .await
        .ok_or(FeedError::Unavailable)?;
    let made = Made {
        degraded: missing.names(),
        epoch,
        ..made
    };
    Ok(keep(app, ask, made).await)
}

async fn make_timeline(app: &App, ask: &Ask, missing: &mut Missing) -> Option<Made> {
    let timeout = Duration::from_millis(app.live().feed.timeline_timeout_ms);
    let timeline = timeline::fetch(&app.stores, ask.viewer, unix_ms(), timeout).await?;
    missing.extend(timeline.degraded.as_slice());
    let seen = read_seen(app, ask.viewer, &timeline.set.post_ids, missing).await;
    let seen_version = seen.version;
    let job = rank_job(ask, Arc::new(timeline.set), seen);
    let ranking = timeline::rank(&job)?;
    Some(Made {
        ranking_id: Uuid::now_v7(),
        algo: Algo::Timeline,
        served_by: ServedBy::Timeline,
        fallback: false,
        policy: ServedPolicy::native(Algo::Timeline),
        assignment: None,
        posts: ranked_posts(&job.set, &ranking, false),
        degraded: Vec::new(),
        seen_version,
        epoch: None,
        cache_hit: false,
    })
}

/// Stores a ranking as a snapshot, records its exposure, and renders its first page.
async fn keep(app: &App, ask: &Ask, made: Made) -> FeedPage {
    let (cache_hit, epoch) = (made.cache_hit, made.epoch);
    let snapshot = Arc::new(Snapshot {
        ranking_id: made.ranking_id,
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
        whole_in: AtomicU64::new(0),
    });
    // If the viewer interacted while this was being ranked, serve it but do not cache it as the
    // viewer's latest ranking.
    if let Err(error) = app.stores.cache.put_snapshot(snapshot.clone(), epoch).await {
        tracing::warn!(%error, "could not store a snapshot; its later pages will be missing");
    }
    app.exposures
        .record(exposure::of(&snapshot, &ask.request_id));
    first_page(app, snapshot, ask.limit, cache_hit)
}

fn first_page(app: &App, snapshot: Arc<Snapshot>, limit: usize, cache_hit: bool) -> FeedPage {
    let deleted = app.deleted.current();
    page(snapshot, &app.cursor_key, &deleted, 0, limit, cache_hit)
}
