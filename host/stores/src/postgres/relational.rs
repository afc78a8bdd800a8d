//! Queries for the timeline, viewers' attributes and followers.

use super::{PostgresStore, STORE_NAME, from_sql, from_time, to_sql, to_time};
use crate::ports::{RelationalStore, StoreResult};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use nova_model::post::{Post, TimelinePost};
use nova_model::time::{DAY_MS, HOUR_MS, UnixMs};
use nova_model::user::ViewerAttributes;
use std::cmp::Reverse;

const FOLLOWEES_LIMIT: u32 = 500;
const FOLLOWEES_WINDOW_MS: u64 = 72 * HOUR_MS;
const POST_WINDOW_MS: u64 = 90 * DAY_MS;

/// Reads the timeline in one round trip. `LATERAL` reads a short range of the author index for
/// each followee instead of all users' posts of three days. `everybody` may repeat every
/// followed post, so it reads as many posts as are wanted in all, which leaves enough to fill
/// the timeline. Followed posts come first and are never displaced.
const TIMELINE: &str = "
WITH followed AS MATERIALIZED (
    SELECT p.post_id, p.author_id, p.created_at
    FROM follows f CROSS JOIN LATERAL (
        SELECT post_id, author_id, created_at
        FROM posts
        WHERE author_id = f.following_id AND NOT deleted AND created_at BETWEEN $2 AND $4
        ORDER BY created_at DESC, post_id DESC
        LIMIT $5) p
    WHERE f.follower_id = $1 AND f.following_id <> $1
    ORDER BY p.created_at DESC, p.post_id DESC
    LIMIT $5),
everybody AS (
    SELECT post_id, author_id, created_at
    FROM posts
    WHERE NOT deleted AND created_at BETWEEN $3 AND $4 AND author_id <> $1
    ORDER BY created_at DESC, post_id DESC
    LIMIT $6)
SELECT post_id, author_id, created_at, true AS is_followed FROM followed
UNION ALL
SELECT post_id, author_id, created_at, false FROM everybody e
WHERE NOT EXISTS (SELECT 1 FROM followed f WHERE f.post_id = e.post_id)
ORDER BY is_followed DESC, created_at DESC, post_id DESC
LIMIT $6";

type TimelineRow = (i64, i64, DateTime<Utc>, bool);

fn to_timeline_post((post_id, author_id, created_at, followed): TimelineRow) -> TimelinePost {
    TimelinePost {
        post: Post {
            post_id: from_sql(post_id),
            author_id: from_sql(author_id),
            created_at_ms: from_time(created_at),
        },
        followed,
    }
}

#[async_trait]
impl RelationalStore for PostgresStore {
    fn name(&self) -> &'static str {
        STORE_NAME
    }

    async fn timeline(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<TimelinePost>> {
        let query = sqlx::query_as(TIMELINE)
            .bind(to_sql(viewer))
            .bind(to_time(now_ms.saturating_sub(FOLLOWEES_WINDOW_MS)))
            .bind(to_time(now_ms.saturating_sub(POST_WINDOW_MS)))
            .bind(to_time(now_ms))
            .bind(i64::from(limit.min(FOLLOWEES_LIMIT)))
            .bind(i64::from(limit));
        self.guard
            .run("timeline", async {
                let rows = query.fetch_all(&self.pool).await?;
                let mut posts: Vec<_> = rows.into_iter().map(to_timeline_post).collect();
                posts.sort_by_key(|found| Reverse((found.post.created_at_ms, found.post.post_id)));
                Ok(posts)
            })
            .await
    }

    async fn viewer_attributes(&self, viewer: u64) -> StoreResult<Option<ViewerAttributes>> {
        let query =
            sqlx::query_as("SELECT country, language, created_at FROM users WHERE user_id = $1")
                .bind(to_sql(viewer));
        self.guard
            .run("viewer_attributes", async {
                let row: Option<(String, String, DateTime<Utc>)> =
                    query.fetch_optional(&self.pool).await?;
                Ok(row.map(|(country, language, created_at)| ViewerAttributes {
                    country,
                    language,
                    created_at_ms: from_time(created_at),
                }))
            })
            .await
    }

    async fn followers(&self, author: u64, limit: u32) -> StoreResult<Vec<u64>> {
        let query =
            sqlx::query_scalar("SELECT follower_id FROM follows WHERE following_id = $1 LIMIT $2")
                .bind(to_sql(author))
                .bind(i64::from(limit));
        self.guard
            .run("followers", async {
                let rows: Vec<i64> = query.fetch_all(&self.pool).await?;
                Ok(rows.into_iter().map(from_sql).collect())
            })
            .await
    }

    async fn ping(&self) -> StoreResult<()> {
        self.guard
            .ping(async {
                sqlx::query("SELECT 1").execute(&self.pool).await?;
                Ok(())
            })
            .await
    }
}
