//! The candidate sources and features as SQL for SQLite: followees, trending, affinity, recent and
//! the counters, computed from posts, follows and the aggregates of events. The list of trending
//! posts of a window is here too.

use super::{
    AGGREGATE_WINDOW_MS, EmbeddedStore, STORE_NAME, day_start, from_sql, hour_start, json_ids,
    to_sql,
};
use crate::ports::{CandidateStore, StoreResult};
use async_trait::async_trait;
use nova_model::post::{Counters, Post, TrendingPost};
use nova_model::time::{HOUR_MS, UnixMs};
use nova_model::user::SuggestedUser;
use std::collections::HashMap;

const FOLLOWEES_WINDOW_MS: u64 = 72 * HOUR_MS;
/// Maximum age of a post in any source.
const POST_WINDOW_MS: u64 = AGGREGATE_WINDOW_MS;
/// Window of the trending source: the current bucket and this many hours before it.
const TRENDING_SOURCE_HOURS: u64 = 24;

/// `CROSS JOIN` fixes the join order: SQLite reads a short range of the author index for each
/// followee instead of all users' posts of three days.
const FOLLOWEES: &str = "
SELECT p.post_id, p.author_id, p.created_at_ms
FROM follows f CROSS JOIN posts p ON p.author_id = f.following_id
WHERE f.follower_id = ?1 AND f.following_id <> ?1
  AND p.deleted = 0 AND p.created_at_ms BETWEEN ?2 AND ?3
ORDER BY p.created_at_ms DESC, p.post_id DESC
LIMIT ?4";

const TRENDING: &str = "
WITH engaged AS (
    SELECT post_id, sum(likes + 2 * comments + 3 * shares) AS engagement
    FROM post_metrics_1h
    WHERE hour_ms BETWEEN ?2 AND ?3 AND likes + comments + shares > 0
    GROUP BY post_id)
SELECT p.post_id, p.author_id, p.created_at_ms
FROM engaged e CROSS JOIN posts p ON p.post_id = e.post_id
WHERE p.deleted = 0 AND p.created_at_ms <= ?4 AND p.author_id <> ?1
ORDER BY e.engagement DESC, p.post_id DESC
LIMIT ?5";

/// The inner `LIMIT` reads only the newest posts of each author from the index, even if an
/// author has very many.
const AFFINITY: &str = "
WITH engaged AS (
    SELECT author_id, sum(likes + comments + views) AS affinity
    FROM user_author_90d
    WHERE user_id = ?1 AND day_ms >= ?2 AND author_id <> ?1
    GROUP BY author_id
    HAVING sum(likes + comments) > 0)
SELECT p.post_id, p.author_id, p.created_at_ms
FROM engaged e CROSS JOIN posts p ON p.post_id IN (
    SELECT post_id FROM posts
    WHERE author_id = e.author_id AND deleted = 0 AND created_at_ms BETWEEN ?3 AND ?4
    ORDER BY created_at_ms DESC, post_id DESC
    LIMIT ?5)
ORDER BY e.affinity DESC, p.created_at_ms DESC, p.post_id DESC
LIMIT ?6";

const RECENT: &str = "
SELECT post_id, author_id, created_at_ms
FROM posts
WHERE deleted = 0 AND created_at_ms BETWEEN ?2 AND ?3 AND author_id <> ?1
ORDER BY created_at_ms DESC, post_id DESC
LIMIT ?4";

const COUNTERS: &str = "
SELECT post_id, sum(views), sum(likes), sum(comments), sum(shares), sum(dwell_ms_sum), sum(exposures)
FROM post_metrics_1h
WHERE post_id IN (SELECT value FROM json_each(?1)) AND hour_ms >= ?2
GROUP BY post_id";

const AFFINITIES: &str = "
SELECT author_id, sum(likes + comments + views)
FROM user_author_90d
WHERE user_id = ?1 AND day_ms >= ?2
GROUP BY author_id";

/// SQLite can use the partial index only if the query contains its whole list of actions.
const RECENT_IMPRESSIONS: &str = "
SELECT author_id, count(*)
FROM events
WHERE user_id = ?1 AND accepted_ms >= ?2
  AND action IN ('impression', 'view') AND action = 'impression'
GROUP BY author_id";

const SEEN_SINCE: &str = "
SELECT post_id, max(accepted_ms)
FROM events
WHERE user_id = ?1 AND accepted_ms >= ?2 AND action IN ('impression', 'view')
GROUP BY post_id";

/// The order depends only on engagement. Views, dwell and exposures are read only for the posts
/// in the result.
const TRENDING_WINDOW: &str = "
WITH engaged AS (
    SELECT post_id, sum(likes + 2 * comments + 3 * shares) AS engagement
    FROM post_metrics_1h
    WHERE hour_ms BETWEEN ?1 AND ?2 AND likes + comments + shares > 0
    GROUP BY post_id),
top AS (
    SELECT p.post_id, p.author_id, e.engagement
    FROM engaged e CROSS JOIN posts p ON p.post_id = e.post_id
    WHERE p.deleted = 0 AND p.created_at_ms <= ?3
    ORDER BY e.engagement DESC, p.post_id DESC
    LIMIT ?4)
SELECT t.post_id, t.author_id, sum(m.views), sum(m.likes), sum(m.comments), sum(m.shares),
       sum(m.dwell_ms_sum), sum(m.exposures)
FROM top t CROSS JOIN post_metrics_1h m ON m.post_id = t.post_id
WHERE m.hour_ms BETWEEN ?1 AND ?2
GROUP BY t.post_id, t.author_id, t.engagement
ORDER BY t.engagement DESC, t.post_id DESC";

type PostRow = (i64, i64, i64);

fn to_post((post_id, author_id, created_at_ms): PostRow) -> Post {
    Post {
        post_id: from_sql(post_id),
        author_id: from_sql(author_id),
        created_at_ms: from_sql(created_at_ms),
    }
}

fn to_posts(rows: Vec<PostRow>) -> Vec<Post> {
    rows.into_iter().map(to_post).collect()
}

/// Converts rows of (key, count).
fn to_counts(rows: Vec<(i64, i64)>) -> HashMap<u64, u64> {
    rows.into_iter()
        .map(|(key, count)| (from_sql(key), from_sql(count)))
        .collect()
}

/// Converts sums in the order of the SELECT lists: views, likes, comments, shares, dwell,
/// exposures.
fn to_counters(sums: (i64, i64, i64, i64, i64, i64)) -> Counters {
    let (views, likes, comments, shares, dwell_ms_sum, exposures) = sums;
    Counters {
        views: from_sql(views),
        likes: from_sql(likes),
        comments: from_sql(comments),
        shares: from_sql(shares),
        dwell_ms_sum: from_sql(dwell_ms_sum),
        exposures: from_sql(exposures),
    }
}

fn first_hour_of_window(now_ms: UnixMs) -> i64 {
    to_sql(hour_start(now_ms.saturating_sub(AGGREGATE_WINDOW_MS)))
}

pub(super) fn first_day_of_window(now_ms: UnixMs) -> i64 {
    to_sql(day_start(now_ms.saturating_sub(AGGREGATE_WINDOW_MS)))
}

impl EmbeddedStore {
    /// Returns (post id, time of its last acceptance) for every post that the viewer saw by an
    /// impression or a view accepted at or after `since_ms`. Imported events count as accepted
    /// when they happened.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn seen_since(
        &self,
        viewer: u64,
        since_ms: UnixMs,
    ) -> StoreResult<Vec<(u64, UnixMs)>> {
        self.observed("seen_since", async {
            let rows: Vec<(i64, i64)> = sqlx::query_as(SEEN_SINCE)
                .bind(to_sql(viewer))
                .bind(to_sql(since_ms))
                .fetch_all(self.reader())
                .await?;
            Ok(rows
                .into_iter()
                .map(|(post, at)| (from_sql(post), from_sql(at)))
                .collect())
        })
        .await
    }

    async fn counters_of(
        &self,
        post_ids: &[u64],
        now_ms: UnixMs,
    ) -> anyhow::Result<HashMap<u64, Counters>> {
        type Row = (i64, i64, i64, i64, i64, i64, i64);
        let rows: Vec<Row> = sqlx::query_as(COUNTERS)
            .bind(json_ids(post_ids))
            .bind(first_hour_of_window(now_ms))
            .fetch_all(self.reader())
            .await?;
        let sums =
            rows.into_iter()
                .map(|(post, views, likes, comments, shares, dwell, exposures)| {
                    (
                        from_sql(post),
                        to_counters((views, likes, comments, shares, dwell, exposures)),
                    )
                });
        Ok(sums.collect())
    }

    /// Returns a count for each author. The parameters of `sql` are the viewer and `since`.
    async fn author_counts(
        &self,
        query: &'static str,
        sql: &'static str,
        viewer: u64,
        since: i64,
    ) -> StoreResult<HashMap<u64, u64>> {
        self.observed(query, async {
            let rows = sqlx::query_as(sql)
                .bind(to_sql(viewer))
                .bind(since)
                .fetch_all(self.reader())
                .await?;
            Ok(to_counts(rows))
        })
        .await
    }
}

#[async_trait]
impl CandidateStore for EmbeddedStore {
    fn name(&self) -> &'static str {
        STORE_NAME
    }

    async fn followees(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>> {
        self.observed("followees", async {
            let rows = sqlx::query_as(FOLLOWEES)
                .bind(to_sql(viewer))
                .bind(to_sql(now_ms.saturating_sub(FOLLOWEES_WINDOW_MS)))
                .bind(to_sql(now_ms))
                .bind(limit)
                .fetch_all(self.reader())
                .await?;
            Ok(to_posts(rows))
        })
        .await
    }

    async fn trending(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>> {
        let newest = hour_start(now_ms);
        self.observed("trending", async {
            let rows = sqlx::query_as(TRENDING)
                .bind(to_sql(viewer))
                .bind(to_sql(
                    newest.saturating_sub(TRENDING_SOURCE_HOURS * HOUR_MS),
                ))
                .bind(to_sql(newest))
                .bind(to_sql(now_ms))
                .bind(limit)
                .fetch_all(self.reader())
                .await?;
            Ok(to_posts(rows))
        })
        .await
    }

    async fn affinity(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        per_author: u32,
        limit: u32,
    ) -> StoreResult<Vec<Post>> {
        self.observed("affinity", async {
            let rows = sqlx::query_as(AFFINITY)
                .bind(to_sql(viewer))
                .bind(first_day_of_window(now_ms))
                .bind(to_sql(now_ms.saturating_sub(POST_WINDOW_MS)))
                .bind(to_sql(now_ms))
                .bind(per_author)
                .bind(limit)
                .fetch_all(self.reader())
                .await?;
            Ok(to_posts(rows))
        })
        .await
    }

    async fn recent(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>> {
        self.observed("recent", async {
            let rows = sqlx::query_as(RECENT)
                .bind(to_sql(viewer))
                .bind(to_sql(now_ms.saturating_sub(POST_WINDOW_MS)))
                .bind(to_sql(now_ms))
                .bind(limit)
                .fetch_all(self.reader())
                .await?;
            Ok(to_posts(rows))
        })
        .await
    }

    async fn counters(
        &self,
        post_ids: &[u64],
        now_ms: UnixMs,
    ) -> StoreResult<HashMap<u64, Counters>> {
        self.observed("counters", self.counters_of(post_ids, now_ms))
            .await
    }

    async fn affinities(&self, viewer: u64, now_ms: UnixMs) -> StoreResult<HashMap<u64, u64>> {
        let since = first_day_of_window(now_ms);
        self.author_counts("affinities", AFFINITIES, viewer, since)
            .await
    }

    async fn recent_impressions(
        &self,
        viewer: u64,
        since_ms: UnixMs,
    ) -> StoreResult<HashMap<u64, u64>> {
        let since = to_sql(since_ms);
        self.author_counts("recent_impressions", RECENT_IMPRESSIONS, viewer, since)
            .await
    }

    async fn trending_window(
        &self,
        window_hours: u32,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<TrendingPost>> {
        type Row = (i64, i64, i64, i64, i64, i64, i64, i64);
        let newest = hour_start(now_ms);
        let window_start_ms = newest.saturating_sub(u64::from(window_hours) * HOUR_MS);
        self.observed("trending_window", async {
            let rows: Vec<Row> = sqlx::query_as(TRENDING_WINDOW)
                .bind(to_sql(window_start_ms))
                .bind(to_sql(newest))
                .bind(to_sql(now_ms))
                .bind(limit)
                .fetch_all(self.reader())
                .await?;
            let posts =
                rows.into_iter().map(
                    |(post, author, v, l, c, s, dwell, exposures)| TrendingPost {
                        post_id: from_sql(post),
                        author_id: from_sql(author),
                        window_start_ms,
                        counters: to_counters((v, l, c, s, dwell, exposures)),
                    },
                );
            Ok(posts.collect())
        })
        .await
    }

    async fn post_metrics(
        &self,
        post_id: u64,
        now_ms: UnixMs,
    ) -> StoreResult<Option<(Post, Counters)>> {
        self.observed("post_metrics", async {
            let found = sqlx::query_as(
                "SELECT post_id, author_id, created_at_ms FROM posts WHERE post_id = ?1",
            )
            .bind(to_sql(post_id))
            .fetch_optional(self.reader())
            .await?;
            let Some(row) = found else { return Ok(None) };
            let counters = self.counters_of(&[post_id], now_ms).await?;
            Ok(Some((
                to_post(row),
                counters.get(&post_id).copied().unwrap_or_default(),
            )))
        })
        .await
    }

    async fn suggested_users(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<SuggestedUser>> {
        self.suggestions(viewer, now_ms, limit).await
    }

    async fn ping(&self) -> StoreResult<()> {
        self.answers().await
    }
}
