//! A request for a feed, and the reasons why it may fail.

use super::cursor::Cursor;
use nova_model::snapshot::Algo;
use std::sync::Arc;

/// A viewer's request for a page.
#[derive(Debug)]
pub struct FeedRequest {
    pub viewer: u64,
    pub algo: Algo,
    pub limit: usize,
    pub cursor: Option<Cursor>,
    pub request_id: Arc<str>,
}

#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The cursor's snapshot no longer exists. The client must start again without a cursor.
    #[error("the ranking this cursor continues is no longer kept; ask again without a cursor")]
    CursorExpired,
    #[error("no feed can be served right now")]
    Unavailable,
}
