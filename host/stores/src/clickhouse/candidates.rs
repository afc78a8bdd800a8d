//! The candidate sources and features as ClickHouse SQL: followees, trending, affinity, recent and
//! the counters, computed from posts, follows and the aggregates of events. The list of trending
//! posts of a window is here too.

use super::queries::{Affinities, Affinity, Followees, OfViewer, RecentImpressions, Totals};
use super::{
    ALL_THREADS, ClickHouseStore, POST_WINDOW_MS, STORE_NAME, failure, first_hour_of_window,
    from_ticks, hour_of, to_ticks,
};
use crate::guard::Failure;
use crate::ports::{CandidateStore, StoreResult};
use async_trait::async_trait;
use clickhouse::Row;
use nova_model::post::{Counters, Post, TrendingPost};
use nova_model::time::{HOUR_MS, UnixMs};
use nova_model::user::SuggestedUser;
use serde::Deserialize;
use std::collections::HashMap;

/// Window of the trending source: the current hourly bucket and this many before it.
const TRENDING_SOURCE_HOURS: u32 = 24;

/// The newest posts. If `viewer` is 0, no author is excluded, because ids begin with 1.
const RECENT: &str = "
SELECT post_id, author_id, created_at
FROM posts_by_time FINAL
WHERE created_at BETWEEN fromUnixTimestamp64Milli({since:Int64}, 'UTC') AND fromUnixTimestamp64Milli({now:Int64}, 'UTC')
  AND author_id != {viewer:UInt64}
ORDER BY created_at DESC, post_id DESC
LIMIT {limit:UInt32}";

/// Finds the best `contenders` by engagement, and returns the best `limit` of them that may be
/// shown.
const TRENDING: &str = "
WITH engaged AS (
    SELECT post_id, sum(likes + 2 * comments + 3 * shares) AS engagement
    FROM trending_1h
    WHERE hour BETWEEN toDateTime({from_hour:UInt32}, 'UTC') AND toDateTime({to_hour:UInt32}, 'UTC')
    GROUP BY post_id
    HAVING engagement > 0
    ORDER BY engagement DESC, post_id DESC
    LIMIT {contenders:UInt32})
SELECT p.post_id AS post_id, p.author_id AS author_id, p.created_at AS created_at
FROM posts_by_id AS p FINAL
INNER JOIN engaged AS e ON e.post_id = p.post_id
WHERE p.post_id IN (SELECT post_id FROM engaged)
  AND p.created_at <= fromUnixTimestamp64Milli({now:Int64}, 'UTC')
  AND p.author_id != {viewer:UInt64}
ORDER BY e.engagement DESC, p.post_id DESC
LIMIT {limit:UInt32}";
/// Number of contenders per requested post. Few trending posts are deleted or one viewer's own,
/// so this many times the limit nearly always contains enough others.
const CONTENDERS_PER_POST: u32 = 4;

const COUNTERS: &str = "
SELECT post_id, sum(views) AS views, sum(likes) AS likes, sum(comments) AS comments,
       sum(shares) AS shares, sum(dwell_ms_sum) AS dwell_ms_sum, sum(exposures) AS exposures
FROM post_metrics_1h
WHERE post_id IN {post_ids:Array(UInt64)}
  AND hour BETWEEN toDateTime({from_hour:UInt32}, 'UTC') AND toDateTime({to_hour:UInt32}, 'UTC')
GROUP BY post_id";

/// The post without FINAL, because a deleted post still has an author.
const POST: &str = "
SELECT post_id, author_id, created_at FROM posts_by_id
WHERE post_id = {post:UInt64}
ORDER BY version DESC
LIMIT 1";

#[derive(Debug, Row, Deserialize)]
struct PostRow {
    post_id: u64,
    author_id: u64,
    created_at: i64,
}

impl From<PostRow> for Post {
    fn from(row: PostRow) -> Self {
        Self {
            post_id: row.post_id,
            author_id: row.author_id,
            created_at_ms: from_ticks(row.created_at),
        }
    }
}

#[derive(Debug, Row, Deserialize)]
struct CountersRow {
    post_id: u64,
    views: u64,
    likes: u64,
    comments: u64,
    shares: u64,
    dwell_ms_sum: u64,
    exposures: u64,
}

type Found<T> = Result<T, Failure>;

impl ClickHouseStore {
    async fn posts_of(&self, query: clickhouse::query::Query) -> Found<Vec<Post>> {
        let rows = query.fetch_all::<PostRow>().await.map_err(failure)?;
        Ok(rows.into_iter().map(Post::from).collect())
    }

    /// The newest posts of the last `window_ms`, without posts by `viewer` (0 excludes no author).
    pub(super) async fn recent_within(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        window_ms: u64,
        limit: u32,
    ) -> Found<Vec<Post>> {
        let query = (self.reader.query(RECENT))
            .param("viewer", viewer)
            .param(
                "since",
                to_ticks(now_ms.saturating_sub(window_ms.min(POST_WINDOW_MS))),
            )
            .param("now", to_ticks(now_ms))
            .param("limit", limit);
        self.posts_of(query).await
    }

    /// Posts by engagement in the current hour and the `window_hours` before it, without posts
    /// by `viewer` (0 excludes no author).
    pub(super) async fn most_engaged(
        &self,
        viewer: u64,
        window_hours: u32,
        now_ms: UnixMs,
        limit: u32,
    ) -> Found<Vec<Post>> {
        let window_ms = u64::from(window_hours) * HOUR_MS;
        let contenders = limit.saturating_mul(CONTENDERS_PER_POST);
        let trending = |contenders: u32| {
            let query = (self.reader.query(TRENDING))
                .with_setting(ALL_THREADS.0, ALL_THREADS.1)
                .param("viewer", viewer)
                .param("from_hour", hour_of(now_ms.saturating_sub(window_ms)))
                .param("to_hour", hour_of(now_ms))
                .param("now", to_ticks(now_ms))
                .param("contenders", contenders)
                .param("limit", limit);
            self.posts_of(query)
        };
        let posts = trending(contenders).await?;
        if posts.len() as u64 == u64::from(limit) {
            return Ok(posts);
        }
        // Either fewer posts have engagement than were asked for, or most contenders may not be
        // shown. Only a query over all engaged posts can tell.
        trending(u32::MAX).await
    }

    /// Sums over the hourly buckets from `from_hour` to `to_hour`, both included.
    pub(super) async fn counters_between(
        &self,
        post_ids: &[u64],
        from_hour: u32,
        to_hour: u32,
    ) -> Found<HashMap<u64, Counters>> {
        if post_ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows: Vec<CountersRow> = (self.reader.query(COUNTERS))
            .param("post_ids", post_ids)
            .param("from_hour", from_hour)
            .param("to_hour", to_hour)
            .fetch_all()
            .await
            .map_err(failure)?;
        let counters = rows.into_iter().map(|row| {
            let counters = Counters {
                views: row.views,
                likes: row.likes,
                comments: row.comments,
                shares: row.shares,
                dwell_ms_sum: row.dwell_ms_sum,
                exposures: row.exposures,
            };
            (row.post_id, counters)
        });
        Ok(counters.collect())
    }
}

#[async_trait]
impl CandidateStore for ClickHouseStore {
    fn name(&self) -> &'static str {
        STORE_NAME
    }

    async fn followees(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>> {
        let of = OfViewer {
            viewer,
            at_ms: now_ms,
        };
        (self.lookups.followees.run(self, Followees { of, limit })).await
    }

    async fn trending(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>> {
        let shared = self
            .lists
            .trending(self, now_ms, TRENDING_SOURCE_HOURS)
            .await?;
        match shared.for_viewer(viewer, limit) {
            Some(posts) => Ok(posts),
            None => {
                let exact = self.most_engaged(viewer, TRENDING_SOURCE_HOURS, now_ms, limit);
                self.guard.run("trending", exact).await
            }
        }
    }

    async fn affinity(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        per_author: u32,
        limit: u32,
    ) -> StoreResult<Vec<Post>> {
        let lookup = Affinity {
            of: OfViewer {
                viewer,
                at_ms: now_ms,
            },
            per_author,
            limit,
        };
        self.lookups.affinity.run(self, lookup).await
    }

    async fn recent(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>> {
        let shared = self.lists.recent(self, now_ms).await?;
        match shared.for_viewer(viewer, limit) {
            Some(posts) => Ok(posts),
            None => {
                let exact = self.recent_within(viewer, now_ms, POST_WINDOW_MS, limit);
                self.guard.run("recent", exact).await
            }
        }
    }

    async fn counters(
        &self,
        post_ids: &[u64],
        now_ms: UnixMs,
    ) -> StoreResult<HashMap<u64, Counters>> {
        let lookup = Totals {
            post_ids: post_ids.to_vec(),
            from_hour: first_hour_of_window(now_ms),
        };
        let totals = self.lookups.totals.run(self, lookup).await?;
        let found = |id: &u64| Some((*id, *totals.get(id)?));
        Ok(post_ids.iter().filter_map(found).collect())
    }

    async fn affinities(&self, viewer: u64, now_ms: UnixMs) -> StoreResult<HashMap<u64, u64>> {
        let of = OfViewer {
            viewer,
            at_ms: now_ms,
        };
        self.lookups.affinities.run(self, Affinities(of)).await
    }

    async fn recent_impressions(
        &self,
        viewer: u64,
        since_ms: UnixMs,
    ) -> StoreResult<HashMap<u64, u64>> {
        let of = OfViewer {
            viewer,
            at_ms: since_ms,
        };
        (self.lookups.impressions.run(self, RecentImpressions(of))).await
    }

    async fn trending_window(
        &self,
        window_hours: u32,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<TrendingPost>> {
        let nobody = 0;
        let window_start_ms = (now_ms / HOUR_MS).saturating_sub(window_hours.into()) * HOUR_MS;
        let work = async {
            let posts = self
                .most_engaged(nobody, window_hours, now_ms, limit)
                .await?;
            let ids: Vec<u64> = posts.iter().map(|post| post.post_id).collect();
            let (from_hour, to_hour) = (hour_of(window_start_ms), hour_of(now_ms));
            let counters = self.counters_between(&ids, from_hour, to_hour).await?;
            let trending = posts.iter().map(|post| TrendingPost {
                post_id: post.post_id,
                author_id: post.author_id,
                window_start_ms,
                counters: counters.get(&post.post_id).copied().unwrap_or_default(),
            });
            Ok(trending.collect())
        };
        self.guard.run("trending_window", work).await
    }

    async fn post_metrics(
        &self,
        post_id: u64,
        now_ms: UnixMs,
    ) -> StoreResult<Option<(Post, Counters)>> {
        let work = async {
            let query = self.reader.query(POST).param("post", post_id);
            let Some(row) = query.fetch_optional::<PostRow>().await.map_err(failure)? else {
                return Ok(None);
            };
            let from_hour = first_hour_of_window(now_ms);
            let counters = self
                .counters_between(&[post_id], from_hour, u32::MAX)
                .await?;
            let counters = counters.get(&post_id).copied().unwrap_or_default();
            Ok(Some((row.into(), counters)))
        };
        self.guard.run("post_metrics", work).await
    }

    async fn suggested_users(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<SuggestedUser>> {
        let work = self.suggestions(viewer, now_ms, limit);
        self.suggestions_guard.run("suggested_users", work).await
    }

    async fn ping(&self) -> StoreResult<()> {
        self.answers().await
    }
}
