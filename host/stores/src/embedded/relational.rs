//! Queries for users, follows and the timeline.

use super::{EmbeddedStore, STORE_NAME, from_sql, to_sql};
use crate::ports::{CandidateStore as _, RelationalStore, StoreResult};
use async_trait::async_trait;
use nova_model::post::TimelinePost;
use nova_model::time::UnixMs;
use nova_model::user::ViewerAttributes;
use std::cmp::Reverse;
use std::collections::HashSet;

const FOLLOWEES_LIMIT: u32 = 500;

#[async_trait]
impl RelationalStore for EmbeddedStore {
    fn name(&self) -> &'static str {
        STORE_NAME
    }

    async fn timeline(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<TimelinePost>> {
        let followees = self
            .followees(viewer, now_ms, limit.min(FOLLOWEES_LIMIT))
            .await?;
        // `recent` can repeat every one of these posts, so `limit` of them are enough to fill
        // the timeline.
        let everybody = self.recent(viewer, now_ms, limit).await?;
        let known: HashSet<u64> = followees.iter().map(|post| post.post_id).collect();
        let others = everybody
            .into_iter()
            .filter(|post| !known.contains(&post.post_id));
        let followees = followees.into_iter().map(|post| TimelinePost {
            post,
            followed: true,
        });
        let mut posts: Vec<TimelinePost> = followees
            .chain(others.map(|post| TimelinePost {
                post,
                followed: false,
            }))
            .take(usize::try_from(limit).unwrap_or(usize::MAX))
            .collect();
        posts.sort_by_key(|found| Reverse((found.post.created_at_ms, found.post.post_id)));
        Ok(posts)
    }

    async fn viewer_attributes(&self, viewer: u64) -> StoreResult<Option<ViewerAttributes>> {
        self.observed("viewer_attributes", async {
            let row: Option<(String, String, i64)> = sqlx::query_as(
                "SELECT country, language, created_at_ms FROM users WHERE user_id = ?1",
            )
            .bind(to_sql(viewer))
            .fetch_optional(self.reader())
            .await?;
            Ok(row.map(|(country, language, created)| ViewerAttributes {
                country,
                language,
                created_at_ms: from_sql(created),
            }))
        })
        .await
    }

    async fn followers(&self, author: u64, limit: u32) -> StoreResult<Vec<u64>> {
        self.observed("followers", async {
            let rows: Vec<i64> = sqlx::query_scalar(
                "SELECT follower_id FROM follows WHERE following_id = ?1 LIMIT ?2",
            )
            .bind(to_sql(author))
            .bind(limit)
            .fetch_all(self.reader())
            .await?;
            Ok(rows.into_iter().map(from_sql).collect())
        })
        .await
    }

    async fn ping(&self) -> StoreResult<()> {
        self.answers().await
    }
}
