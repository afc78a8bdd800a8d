//! A page out of a snapshot, as JSON. The posts are rendered apart from the rest of the answer, so
//! that a repeated first page costs a copy and not fifty serialisations.

use super::cursor::{Cursor, CursorKey};
use super::snapshot::{FirstPage, Snapshot, SnapshotPost};
use crate::clock::rfc3339;
use bytes::Bytes;
use serde::Serialize;
use std::sync::Arc;

/// One post of a feed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct FeedPost {
    pub post_id: u64,
    pub author_id: u64,
    pub created_at: String,
    pub likes: u64,
    pub comments: u64,
    pub shares: u64,
    pub dwell_ms_sum: u64,
    pub exposures: u64,
    /// Unrounded; null under `timeline`.
    pub score: Option<f32>,
    /// followees, affinity, trending or recent.
    pub reason: &'static str,
}

impl From<&SnapshotPost> for FeedPost {
    fn from(post: &SnapshotPost) -> Self {
        Self {
            post_id: post.post_id,
            author_id: post.author_id,
            created_at: rfc3339(post.created_at_ms),
            likes: post.counters.likes,
            comments: post.counters.comments,
            shares: post.counters.shares,
            dwell_ms_sum: post.counters.dwell_ms_sum,
            exposures: post.counters.exposures,
            score: post.score,
            reason: post.sources.reason(),
        }
    }
}

/// A page and how it came about.
#[derive(Debug)]
pub struct FeedPage {
    pub snapshot: Arc<Snapshot>,
    pub cache_hit: bool,
    /// A JSON array of `FeedPost`.
    pub posts_json: Bytes,
    pub next_cursor: Option<String>,
    /// What was missing on the way of this very request.
    pub degraded: Vec<String>,
    /// The viewer's older snapshot stood in for a ranking that could not be had.
    pub is_stand_in: bool,
}

/// `limit` posts of `snapshot` from `position` on.
pub fn page(
    snapshot: Arc<Snapshot>,
    key: &CursorKey,
    position: usize,
    limit: usize,
    cache_hit: bool,
) -> FeedPage {
    let render = || FirstPage {
        limit,
        posts_json: render_posts(&snapshot.posts, position, limit),
        next_cursor: next_cursor(&snapshot, key, position, limit),
    };
    let kept = (position == 0)
        .then(|| snapshot.first_page.get_or_init(render))
        .filter(|page| page.limit == limit);
    let (posts_json, next_cursor) = match kept {
        Some(page) => (page.posts_json.clone(), page.next_cursor.clone()),
        None => {
            let page = render();
            (page.posts_json, page.next_cursor)
        }
    };
    FeedPage {
        degraded: snapshot.degraded.clone(),
        snapshot,
        cache_hit,
        posts_json,
        next_cursor,
        is_stand_in: false,
    }
}

fn render_posts(posts: &[SnapshotPost], position: usize, limit: usize) -> Bytes {
    let page: Vec<FeedPost> = posts
        .iter()
        .skip(position)
        .take(limit)
        .map(FeedPost::from)
        .collect();
    // Plain numbers and strings into memory: this cannot fail, and an empty page would be valid JSON.
    serde_json::to_vec(&page).map_or_else(|_| Bytes::from_static(b"[]"), Bytes::from)
}

fn next_cursor(
    snapshot: &Snapshot,
    key: &CursorKey,
    position: usize,
    limit: usize,
) -> Option<String> {
    let next = position.saturating_add(limit);
    let more = next < snapshot.posts.len();
    more.then(|| {
        let position = u32::try_from(next).unwrap_or(u32::MAX);
        key.encode(
            snapshot.viewer,
            Cursor {
                ranking_id: snapshot.ranking_id,
                position,
            },
        )
    })
}
