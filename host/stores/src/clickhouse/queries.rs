//! The lookups of viewers and posts that feeds need, in a form in which one query answers
//! many callers at once (`coalesce`).
//!
//! Callers ask at times that differ by milliseconds. Each gets the answer as of the
//! latest of these times.

use super::coalesce::{Coalescer, Lookup};
use super::{ClickHouseStore, POST_WINDOW_MS, failure, first_day_of_window, from_ticks, to_ticks};
use crate::guard::Failure;
use clickhouse::Row;
use clickhouse::query::Query;
use nova_model::post::{Counters, Post};
use nova_model::time::{HOUR_MS, UnixMs};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

const FOLLOWEES_WINDOW_MS: u64 = 72 * HOUR_MS;

/// Maximum number of viewers in one query; each may yield 500 posts.
const VIEWERS_MAX: usize = 32;
/// Maximum number of posts in one query, because ClickHouse accepts 128 KiB in one parameter.
const POSTS_MAX: usize = 5_000;
/// Maximum difference between the times of lookups that share a query, in ms.
const SAME_MOMENT_MS: u64 = 1_000;

const FOLLOWEES: &str = "
WITH followed AS (
    SELECT follower_id, following_id FROM follows FINAL
    WHERE follower_id IN {viewers:Array(UInt64)} AND following_id != follower_id)
SELECT f.follower_id AS viewer, p.post_id AS post_id, p.author_id AS author_id, p.created_at AS created_at
FROM posts AS p FINAL
INNER JOIN followed AS f ON f.following_id = p.author_id
WHERE p.author_id IN (SELECT following_id FROM followed)
  AND p.created_at BETWEEN fromUnixTimestamp64Milli({since:Int64}, 'UTC') AND fromUnixTimestamp64Milli({now:Int64}, 'UTC')
ORDER BY viewer, p.created_at DESC, p.post_id DESC
LIMIT {limit:UInt32} BY viewer";

/// Posts of the affinity source. `engaged` has a few rows per viewer and is read twice: to find
/// the ranges of the authors' posts, and to order the posts.
const AFFINITY: &str = "
WITH engaged AS (
    SELECT user_id, author_id, sum(likes + comments + views) AS affinity
    FROM user_author_90d
    WHERE user_id IN {viewers:Array(UInt64)} AND day >= toDate({first_day:UInt16}) AND author_id != user_id
    GROUP BY user_id, author_id
    HAVING sum(likes + comments) > 0)
SELECT viewer, post_id, author_id, created_at
FROM (
    SELECT e.user_id AS viewer, p.post_id AS post_id, p.author_id AS author_id, p.created_at AS created_at, e.affinity AS affinity
    FROM posts AS p FINAL
    INNER JOIN engaged AS e ON e.author_id = p.author_id
    WHERE p.author_id IN (SELECT author_id FROM engaged)
      AND p.created_at BETWEEN fromUnixTimestamp64Milli({since:Int64}, 'UTC') AND fromUnixTimestamp64Milli({now:Int64}, 'UTC')
    ORDER BY viewer, affinity DESC, created_at DESC, post_id DESC
    LIMIT {per_author:UInt32} BY viewer, author_id)
ORDER BY viewer, affinity DESC, created_at DESC, post_id DESC
LIMIT {limit:UInt32} BY viewer";

const AFFINITIES: &str = "
SELECT user_id AS viewer, author_id, sum(likes + comments + views) AS count
FROM user_author_90d
WHERE user_id IN {viewers:Array(UInt64)} AND day >= toDate({first_day:UInt16})
GROUP BY user_id, author_id";

const RECENT_IMPRESSIONS: &str = "
SELECT user_id AS viewer, author_id, count() AS count
FROM viewer_impressions
WHERE user_id IN {viewers:Array(UInt64)} AND accepted_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
GROUP BY user_id, author_id";

/// One queue of lookups for each kind.
#[derive(Clone, Default)]
pub(super) struct LookupQueues {
    pub followees: Coalescer<Followees>,
    pub affinity: Coalescer<Affinity>,
    pub affinities: Coalescer<Affinities>,
    pub impressions: Coalescer<RecentImpressions>,
    pub totals: Coalescer<Totals>,
}

/// One viewer, at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct OfViewer {
    pub viewer: u64,
    pub at_ms: UnixMs,
}

/// A lookup of the source `followees`.
pub(super) struct Followees {
    pub of: OfViewer,
    pub limit: u32,
}

/// A lookup of the source `affinity`.
pub(super) struct Affinity {
    pub of: OfViewer,
    pub per_author: u32,
    pub limit: u32,
}

/// A lookup of the viewer's interactions with each author in 90 days.
pub(super) struct Affinities(pub OfViewer);

/// A lookup of the viewer's impressions of each author's posts since `at_ms`.
pub(super) struct RecentImpressions(pub OfViewer);

/// A lookup of the totals of posts over 90 days.
pub(super) struct Totals {
    pub post_ids: Vec<u64>,
    pub from_hour: u32,
}

#[derive(Debug, Row, Deserialize)]
struct ViewerPost {
    viewer: u64,
    post_id: u64,
    author_id: u64,
    created_at: i64,
}

#[derive(Debug, Row, Deserialize)]
struct ViewerCount {
    viewer: u64,
    author_id: u64,
    count: u64,
}

fn joins(one: OfViewer, others: impl ExactSizeIterator<Item = OfViewer>) -> bool {
    others.len() < VIEWERS_MAX && { others }
        .all(|other| other.at_ms.abs_diff(one.at_ms) <= SAME_MOMENT_MS)
}

fn viewers(batch: impl Iterator<Item = OfViewer>) -> BTreeSet<u64> {
    batch.map(|of| of.viewer).collect()
}

fn latest_ms(batch: impl Iterator<Item = OfViewer>) -> UnixMs {
    batch.map(|of| of.at_ms).max().unwrap_or(0)
}

/// Returns the posts of a source, in its order, for each viewer of a batch.
async fn posts_by_viewer(query: Query, batch: &[OfViewer]) -> Result<Vec<Vec<Post>>, Failure> {
    let mut found = HashMap::<u64, Vec<Post>>::new();
    for row in query.fetch_all::<ViewerPost>().await.map_err(failure)? {
        found.entry(row.viewer).or_default().push(Post {
            post_id: row.post_id,
            author_id: row.author_id,
            created_at_ms: from_ticks(row.created_at),
        });
    }
    Ok(for_each(batch, &found))
}

async fn counts_by_viewer(
    query: Query,
    batch: &[OfViewer],
) -> Result<Vec<HashMap<u64, u64>>, Failure> {
    let mut found = HashMap::<u64, HashMap<u64, u64>>::new();
    for row in query.fetch_all::<ViewerCount>().await.map_err(failure)? {
        let counts = found.entry(row.viewer).or_default();
        counts.insert(row.author_id, row.count);
    }
    Ok(for_each(batch, &found))
}

fn for_each<T: Default + Clone>(batch: &[OfViewer], found: &HashMap<u64, T>) -> Vec<T> {
    let of = |of: &OfViewer| found.get(&of.viewer).cloned().unwrap_or_default();
    batch.iter().map(of).collect()
}

impl Lookup for Followees {
    type Answer = Vec<Post>;
    const NAME: &'static str = "followees";

    fn joins(&self, batch: &[Self]) -> bool {
        joins(self.of, batch.iter().map(|other| other.of))
            && batch.iter().all(|other| other.limit == self.limit)
    }

    async fn answer_all(
        store: &ClickHouseStore,
        batch: &[Self],
    ) -> Result<Vec<Vec<Post>>, Failure> {
        let all: Vec<OfViewer> = batch.iter().map(|lookup| lookup.of).collect();
        let now_ms = latest_ms(all.iter().copied());
        let since_ms = now_ms.saturating_sub(FOLLOWEES_WINDOW_MS);
        let query = (store.reader.query(FOLLOWEES))
            .param("viewers", viewers(all.iter().copied()))
            .param("since", to_ticks(since_ms))
            .param("now", to_ticks(now_ms))
            .param("limit", batch.first().map_or(0, |lookup| lookup.limit));
        posts_by_viewer(query, &all).await
    }
}

impl Lookup for Affinity {
    type Answer = Vec<Post>;
    const NAME: &'static str = "affinity";

    fn joins(&self, batch: &[Self]) -> bool {
        let same = |other: &Self| other.limit == self.limit && other.per_author == self.per_author;
        joins(self.of, batch.iter().map(|other| other.of)) && batch.iter().all(same)
    }

    async fn answer_all(
        store: &ClickHouseStore,
        batch: &[Self],
    ) -> Result<Vec<Vec<Post>>, Failure> {
        let all: Vec<OfViewer> = batch.iter().map(|lookup| lookup.of).collect();
        let now_ms = latest_ms(all.iter().copied());
        let limits = batch.first().map(|first| (first.per_author, first.limit));
        let (per_author, limit) = limits.unwrap_or_default();
        let query = (store.reader.query(AFFINITY))
            .param("viewers", viewers(all.iter().copied()))
            .param("first_day", first_day_of_window(now_ms))
            .param("since", to_ticks(now_ms.saturating_sub(POST_WINDOW_MS)))
            .param("now", to_ticks(now_ms))
            .param("per_author", per_author)
            .param("limit", limit);
        posts_by_viewer(query, &all).await
    }
}

impl Lookup for Affinities {
    type Answer = HashMap<u64, u64>;
    const NAME: &'static str = "affinities";

    fn joins(&self, batch: &[Self]) -> bool {
        joins(self.0, batch.iter().map(|other| other.0))
    }

    async fn answer_all(
        store: &ClickHouseStore,
        batch: &[Self],
    ) -> Result<Vec<HashMap<u64, u64>>, Failure> {
        let all: Vec<OfViewer> = batch.iter().map(|lookup| lookup.0).collect();
        let now_ms = latest_ms(all.iter().copied());
        let query = (store.reader.query(AFFINITIES))
            .param("viewers", viewers(all.iter().copied()))
            .param("first_day", first_day_of_window(now_ms));
        counts_by_viewer(query, &all).await
    }
}

impl Lookup for RecentImpressions {
    type Answer = HashMap<u64, u64>;
    const NAME: &'static str = "recent_impressions";

    fn joins(&self, batch: &[Self]) -> bool {
        joins(self.0, batch.iter().map(|other| other.0))
    }

    async fn answer_all(
        store: &ClickHouseStore,
        batch: &[Self],
    ) -> Result<Vec<HashMap<u64, u64>>, Failure> {
        let all: Vec<OfViewer> = batch.iter().map(|lookup| lookup.0).collect();
        let query = (store.reader.query(RECENT_IMPRESSIONS))
            .param("viewers", viewers(all.iter().copied()))
            .param("since", to_ticks(latest_ms(all.iter().copied())));
        counts_by_viewer(query, &all).await
    }
}

impl Lookup for Totals {
    /// Totals of all posts that were asked for in the same query.
    type Answer = Arc<HashMap<u64, Counters>>;
    const NAME: &'static str = "counters";

    fn joins(&self, batch: &[Self]) -> bool {
        let asked: usize = batch.iter().map(|other| other.post_ids.len()).sum();
        asked + self.post_ids.len() <= POSTS_MAX
            && batch.iter().all(|other| other.from_hour == self.from_hour)
    }

    async fn answer_all(
        store: &ClickHouseStore,
        batch: &[Self],
    ) -> Result<Vec<Self::Answer>, Failure> {
        let ids = batch.iter().flat_map(|lookup| &lookup.post_ids);
        let distinct: BTreeSet<u64> = ids.copied().collect();
        let ids: Vec<u64> = distinct.into_iter().collect();
        let from_hour = batch.first().map_or(0, |lookup| lookup.from_hour);
        let totals = Arc::new(store.counters_between(&ids, from_hour, u32::MAX).await?);
        Ok(vec![totals; batch.len()])
    }
}
