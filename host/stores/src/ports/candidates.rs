//! Port: where candidates and their features come from.

use super::StoreResult;
use async_trait::async_trait;
use nova_model::post::{Counters, Post, TrendingPost};
use nova_model::time::UnixMs;
use nova_model::user::SuggestedUser;
use std::collections::HashMap;

/// The candidate sources and features that docs/semantics.md defines (ClickHouse in the real
/// stack).
///
/// Every source leaves out deleted posts, posts dated after `now_ms` and the viewer's own posts,
/// before any limit is applied.
#[async_trait]
pub trait CandidateStore: Send + Sync + 'static {
    /// The name used in `degraded`, `/health` and metrics.
    fn name(&self) -> &'static str;

    /// Posts at most 72 h old by authors the viewer follows; newest first, then higher post id;
    /// at most `limit` (500).
    async fn followees(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>>;

    /// Posts with engagement in the current hourly bucket and the 24 before it, by weighted
    /// engagement descending, then higher post id; at most `limit` (200).
    async fn trending(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>>;

    /// Posts at most 90 days old by authors whose posts the viewer liked or commented on
    /// in the last 90 days. They are ordered by affinity, then newest, then higher post
    /// id. At most `per_author` (20, the newest) are by one author, and at most `limit`
    /// (200) are returned in all.
    async fn affinity(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        per_author: u32,
        limit: u32,
    ) -> StoreResult<Vec<Post>>;

    /// The newest posts of all authors, at most 90 days old, newest first, then higher post
    /// id; at most `limit`.
    async fn recent(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>>;

    /// Totals over 90 days (the hourly bucket that contains `now_ms − 90 d` and all later ones).
    /// A post without events may be absent.
    async fn counters(
        &self,
        post_ids: &[u64],
        now_ms: UnixMs,
    ) -> StoreResult<HashMap<u64, Counters>>;

    /// Number of likes, comments and views of this viewer, by author, over the last 90 days (day
    /// buckets, from the one that contains `now_ms − 90 d`).
    async fn affinities(&self, viewer: u64, now_ms: UnixMs) -> StoreResult<HashMap<u64, u64>>;

    /// Number of impressions of this viewer, by author, that were accepted at or after `since_ms`.
    async fn recent_impressions(
        &self,
        viewer: u64,
        since_ms: UnixMs,
    ) -> StoreResult<HashMap<u64, u64>>;

    /// Posts with engagement in the current hourly bucket and the `window_hours` before it, by
    /// weighted engagement descending, then higher post id. Counters cover that window only.
    async fn trending_window(
        &self,
        window_hours: u32,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<TrendingPost>>;

    /// The author of a post (if the post is known) and its 90-day totals.
    async fn post_metrics(
        &self,
        post_id: u64,
        now_ms: UnixMs,
    ) -> StoreResult<Option<(Post, Counters)>>;

    /// See docs/semantics.md, "Suggested users". Best first, at most `limit`.
    async fn suggested_users(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<SuggestedUser>>;

    async fn ping(&self) -> StoreResult<()>;
}
