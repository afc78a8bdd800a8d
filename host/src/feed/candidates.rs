//! Fetching of candidates: queries all sources in parallel, each with its own deadline, merges
//! the results to one row per post, and then adds the features.

use super::degraded::DegradedParts;
use nova_model::features::{CandidateSet, Sources};
use nova_model::post::Post;
use nova_model::time::{DAY_MS, UnixMs};
use nova_stores::guard;
use nova_stores::ports::{CandidateStore, StoreError, StoreResult};
use std::collections::HashMap;
use std::future::Future;
use std::time::{Duration, Instant};

pub const FOLLOWEES_MAX: u32 = 500;
pub const TRENDING_MAX: u32 = 200;
pub const AFFINITY_MAX: u32 = 200;
pub const AFFINITY_PER_AUTHOR_MAX: u32 = 20;
/// If there are fewer candidates than this, the newest posts of all authors are added.
pub const RECENT_BELOW: usize = 50;
/// The newest posts are added until there are this many candidates.
pub const RECENT_FILL: usize = 200;

/// The candidates of a viewer that could be fetched.
#[derive(Debug)]
pub struct Fetched {
    pub set: CandidateSet,
    /// The stores that failed. Empty if the candidates are complete.
    pub degraded: DegradedParts,
    /// Set if no source answered, if a source failed and the others returned no post, or if the
    /// counters are missing, so that the posts cannot be valued. The request then counts as
    /// failed, not as an empty feed.
    pub failed: bool,
}

/// Deadlines of the `recent` source and of the features, in eighths of the sources' timeout,
/// counted from the start. A source that uses its whole timeout must still leave time for the
/// steps after it, and a silent store must not use up its timeout twice.
const RECENT_BY_EIGHTHS: u32 = 9;
const FEATURES_BY_EIGHTHS: u32 = 10;

/// Queries every source. A source that fails or misses its deadline is left out and its store is
/// named in `degraded`. `timeout` applies to the sources; the whole call takes at most a quarter
/// longer.
pub async fn fetch(
    store: &dyn CandidateStore,
    viewer: u64,
    now_ms: UnixMs,
    timeout: Duration,
) -> Fetched {
    let began = Instant::now();
    let left = |of: Duration| of.saturating_sub(began.elapsed());
    let (followees, trending, affinity) = futures::join!(
        within(
            store,
            "followees",
            timeout,
            store.followees(viewer, now_ms, FOLLOWEES_MAX)
        ),
        within(
            store,
            "trending",
            timeout,
            store.trending(viewer, now_ms, TRENDING_MAX)
        ),
        within(
            store,
            "affinity",
            timeout,
            store.affinity(viewer, now_ms, AFFINITY_PER_AUTHOR_MAX, AFFINITY_MAX)
        ),
    );
    let mut merge = Merge::default();
    merge.source(Sources::FOLLOWEES, followees, usize::MAX);
    merge.source(Sources::TRENDING, trending, usize::MAX);
    merge.source(Sources::AFFINITY, affinity, usize::MAX);
    // If the store answered no source in time, do not query it again.
    if merge.answered > 0 && merge.posts.len() < RECENT_BELOW {
        let recent = within(
            store,
            "recent",
            left(timeout * RECENT_BY_EIGHTHS / 8),
            store.recent(viewer, now_ms, RECENT_FILL as u32),
        )
        .await;
        merge.source(Sources::RECENT, recent, RECENT_FILL);
    }
    // If a source failed, an empty list from the other sources may be wrong.
    let no_source = merge.answered == 0 || (merge.failures > 0 && merge.posts.is_empty());
    let Hydrated {
        set,
        mut failures,
        without_counters,
    } = {
        let left = left(timeout * FEATURES_BY_EIGHTHS / 8);
        hydrate(store, viewer, now_ms, left, merge.posts).await
    };
    failures += merge.failures;
    Fetched {
        set,
        degraded: (failures > 0).then(|| store.name()).into(),
        // Without counters, every post would rank like a post without any engagement. An older
        // ranking is better than that.
        failed: no_source || without_counters,
    }
}

/// Merged candidates: one row per post, in the order of the sources, with the union of the
/// source flags.
#[derive(Default)]
struct Merge {
    posts: Vec<(Post, Sources)>,
    row_of: HashMap<u64, usize>,
    answered: usize,
    failures: usize,
}

impl Merge {
    fn source(&mut self, source: Sources, posts: StoreResult<Vec<Post>>, fill_to: usize) {
        let Ok(posts) = posts else {
            self.failures += 1;
            return;
        };
        self.answered += 1;
        for post in posts {
            match self.row_of.get(&post.post_id) {
                Some(&row) => self.posts[row].1.insert(source),
                None if self.posts.len() < fill_to => {
                    self.row_of.insert(post.post_id, self.posts.len());
                    self.posts.push((post, source));
                }
                None => {}
            }
        }
    }
}

struct Hydrated {
    set: CandidateSet,
    failures: usize,
    without_counters: bool,
}

/// Adds the features that do not depend on the current time. A feature that cannot be fetched is
/// zero and counts as a failure.
async fn hydrate(
    store: &dyn CandidateStore,
    viewer: u64,
    now_ms: UnixMs,
    timeout: Duration,
    posts: Vec<(Post, Sources)>,
) -> Hydrated {
    if posts.is_empty() {
        return Hydrated {
            set: CandidateSet::default(),
            failures: 0,
            without_counters: false,
        };
    }
    let ids: Vec<u64> = posts.iter().map(|(post, _)| post.post_id).collect();
    let (counters, affinities, impressions) = futures::join!(
        within(store, "counters", timeout, store.counters(&ids, now_ms)),
        within(
            store,
            "affinities",
            timeout,
            store.affinities(viewer, now_ms)
        ),
        within(
            store,
            "recent_impressions",
            timeout,
            store.recent_impressions(viewer, now_ms.saturating_sub(DAY_MS))
        ),
    );
    let failures = [counters.is_err(), affinities.is_err(), impressions.is_err()]
        .into_iter()
        .filter(|failed| *failed)
        .count();
    let without_counters = counters.is_err();
    let (counters, affinities, impressions) = (
        counters.unwrap_or_default(),
        affinities.unwrap_or_default(),
        impressions.unwrap_or_default(),
    );
    let by_author = |of: &HashMap<u64, u64>| {
        posts
            .iter()
            .map(|(post, _)| of.get(&post.author_id).copied().unwrap_or(0))
            .collect()
    };
    let set = CandidateSet {
        author_ids: posts.iter().map(|(post, _)| post.author_id).collect(),
        created_at_ms: posts.iter().map(|(post, _)| post.created_at_ms).collect(),
        sources: posts.iter().map(|(_, sources)| *sources).collect(),
        counters: ids
            .iter()
            .map(|id| counters.get(id).copied().unwrap_or_default())
            .collect(),
        affinity: by_author(&affinities),
        author_recent_impressions: by_author(&impressions),
        post_ids: ids,
    };
    Hydrated {
        set,
        failures,
        without_counters,
    }
}

/// Runs a query under a deadline and logs its failure. The caller decides how to go on.
pub async fn within<T>(
    store: &dyn CandidateStore,
    query: &'static str,
    timeout: Duration,
    run: impl Future<Output = StoreResult<T>>,
) -> StoreResult<T> {
    let result = guard::within(timeout, run).await.unwrap_or_else(|_| {
        Err(StoreError {
            store: store.name(),
            query,
            retryable: true,
            source: anyhow::anyhow!("no answer within {} ms", timeout.as_millis()),
        })
    });
    if let Err(error) = &result {
        tracing::warn!(
            store = error.store,
            query = error.query,
            error = format!("{:#}", error.source),
            "a candidate query failed; ranking without its result"
        );
    }
    result
}
