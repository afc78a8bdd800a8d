//! The timeline: posts of followees and recent posts, newest first, read from the relational
//! store alone, with native dedup and saturation. It is the last step of the fallback chain.

use super::FeedStores;
use super::candidates::within;
use super::degraded::DegradedParts;
use super::fallback_chain::RankingTask;
use nova_model::features::{CandidateSet, Sources};
use nova_model::post::TimelinePost;
use nova_model::time::UnixMs;
use nova_policy::native::{Native, guarded};
use nova_policy::ranking::{Ranking, rank as rank_stages};
use nova_policy_sdk::{Candidates, Request};
use nova_stores::guard;
use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The order does not depend on the counters, so the viewer does not wait long for them.
const COUNTERS_TIMEOUT: Duration = Duration::from_millis(250);
/// Equals the limit of the followees source.
const POSTS_MAX: u32 = 500;

#[derive(Debug)]
pub struct Timeline {
    pub set: CandidateSet,
    /// The counter store if it did not answer. The order does not depend on the counters.
    pub degraded: DegradedParts,
}

/// Fetches the timeline of a viewer. Returns `None` if the relational store fails or does not
/// answer in time. `timeout` covers both stores together.
pub async fn fetch(
    stores: &FeedStores,
    viewer: u64,
    now_ms: UnixMs,
    timeout: Duration,
) -> Option<Timeline> {
    let began = Instant::now();
    let posts = stores.relational.timeline(viewer, now_ms, POSTS_MAX);
    let answer = guard::within(timeout, posts).await;
    let posts = match answer {
        Ok(Ok(posts)) => posts,
        Ok(Err(error)) => {
            tracing::error!(%error, "could not read the timeline; no feed can be served from it");
            return None;
        }
        Err(_) => {
            tracing::error!(
                timeout_ms = timeout.as_millis() as u64,
                "the timeline query timed out; no feed can be served from it"
            );
            return None;
        }
    };
    let ids: Vec<u64> = posts.iter().map(|post| post.post.post_id).collect();
    let store = stores.candidates.as_ref();
    let left = timeout
        .saturating_sub(began.elapsed())
        .min(COUNTERS_TIMEOUT);
    let counters = within(store, "counters", left, store.counters(&ids, now_ms)).await;
    let degraded = counters.as_ref().err().map(|error| error.store);
    let counters = counters.unwrap_or_default();
    let source = |post: &TimelinePost| {
        if post.followed {
            Sources::FOLLOWEES
        } else {
            Sources::RECENT
        }
    };
    let set = CandidateSet {
        author_ids: posts.iter().map(|post| post.post.author_id).collect(),
        created_at_ms: posts.iter().map(|post| post.post.created_at_ms).collect(),
        sources: posts.iter().map(source).collect(),
        counters: ids
            .iter()
            .map(|id| counters.get(id).copied().unwrap_or_default())
            .collect(),
        affinity: vec![0; ids.len()],
        author_recent_impressions: vec![0; ids.len()],
        post_ids: ids,
    };
    Some(Timeline {
        set,
        degraded: degraded.into(),
    })
}

/// Ranks newest first, then by higher post id, with native dedup and saturation.
pub fn rank(task: &RankingTask) -> Option<Ranking> {
    guarded(AssertUnwindSafe(|| {
        rank_stages(&*NEWEST_FIRST, task.input())
    }))
    .inspect_err(|failure| {
        tracing::error!(%failure, "could not rank the timeline; no feed can be served from it");
    })
    .ok()
}

/// The native stages, with recency in place of the score.
static NEWEST_FIRST: LazyLock<Native> = LazyLock::new(|| Native::get().with_scorer(newest_first));

/// Scores by rank and not by time, because an `f32` cannot distinguish two milliseconds of
/// this century.
fn newest_first(_request: &Request, _params: &[f64], candidates: &Candidates<'_>) -> Vec<f32> {
    let mut newest_first: Vec<usize> = (0..candidates.post_ids.len()).collect();
    newest_first.sort_unstable_by_key(|&at| {
        std::cmp::Reverse((candidates.created_at_ms[at], candidates.post_ids[at]))
    });
    let mut scores = vec![0.0; newest_first.len()];
    for (place, at) in newest_first.into_iter().enumerate() {
        scores[at] = -(place as f32);
    }
    scores
}
