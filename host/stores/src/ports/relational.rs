//! Port: users, follows and posts.

use super::StoreResult;
use async_trait::async_trait;
use nova_model::post::TimelinePost;
use nova_model::time::UnixMs;
use nova_model::user::ViewerAttributes;

/// Users, follows and posts (PostgreSQL in the real stack).
#[async_trait]
pub trait RelationalStore: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Posts of followees (at most 72 h old, at most 500) and the newest posts of all authors
    /// (at most 90 days old), merged to at most `limit` posts, newest first, then higher post
    /// id. The viewer's own posts, deleted posts and future posts are left out. Posts of other
    /// authors never displace posts of followees.
    async fn timeline(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<TimelinePost>>;

    /// `None` if the viewer is unknown.
    async fn viewer_attributes(&self, viewer: u64) -> StoreResult<Option<ViewerAttributes>>;

    /// The followers of an author; at most `limit`, in no particular order.
    async fn followers(&self, author: u64, limit: u32) -> StoreResult<Vec<u64>>;

    async fn ping(&self) -> StoreResult<()>;
}
