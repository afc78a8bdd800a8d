//! Port: the posts that a viewer has seen.

use super::StoreResult;
use async_trait::async_trait;
use nova_model::time::UnixMs;

/// The posts that each viewer has seen in the last 24 h. A filter may report an unseen post as
/// seen, for fewer than 1 % of posts.
#[async_trait]
pub trait SeenPosts: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// A version that changes whenever a post is added.
    async fn version(&self, viewer: u64) -> StoreResult<u64>;

    /// Reports which of `posts` were seen, and the version of the set at that moment.
    async fn among(&self, viewer: u64, posts: &[u64], now_ms: UnixMs) -> StoreResult<SeenAmong>;

    /// Marks posts as seen from `accepted_ms` on, before the response that accepted them is sent.
    async fn mark(&self, viewer: u64, posts: &[u64], accepted_ms: UnixMs) -> StoreResult<()>;

    /// Number of seen posts; an estimate if the filter cannot count exactly.
    async fn count(&self, viewer: u64, now_ms: UnixMs) -> StoreResult<u64>;
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenAmong {
    /// 0 if the filter could not be read.
    pub version: u64,
    /// One entry for each post asked about, in the same order.
    pub seen: Vec<bool>,
}
