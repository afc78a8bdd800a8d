//! Pages of a snapshot: which posts they show, and the JSON of the posts. Posts that were deleted
//! since the ranking are left out here.
//!
//! The posts are rendered separately from the rest of the response (`http/feed.rs`), so that a
//! repeated first page costs a copy and not fifty serialisations.

use super::cursor::{Cursor, CursorKey};
use bytes::Bytes;
use nova_model::deleted::Deleted;
use nova_model::snapshot::{FirstPage, Snapshot, SnapshotPost};
use nova_model::time::rfc3339;
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
    /// Unrounded score. Null under `timeline`.
    pub score: Option<f32>,
    /// First matching source: `followees`, `affinity`, `trending` or `recent`.
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

/// A page, together with the facts that the response reports about it.
#[derive(Debug)]
pub struct FeedPage {
    pub snapshot: Arc<Snapshot>,
    /// Number of posts in the whole ranking, without deleted ones.
    pub total_count: usize,
    pub cache_hit: bool,
    /// JSON array of `FeedPost`.
    pub posts_json: Bytes,
    pub next_cursor: Option<String>,
    /// Names of the parts that were missing in this request.
    pub degraded: Vec<String>,
    /// Set if no ranking could be made and the viewer's older snapshot is served instead.
    pub is_stand_in: bool,
}

/// Returns `limit` posts of `snapshot`, starting at `position`. Skips posts that were deleted
/// since.
pub fn page(
    snapshot: Arc<Snapshot>,
    key: &CursorKey,
    deleted: &Deleted,
    position: usize,
    limit: usize,
    cache_hit: bool,
) -> FeedPage {
    let whole = snapshot.is_whole(deleted);
    let render = || render(&snapshot, key, deleted, position, limit);
    // A page that was rendered before a deletion would still show the deleted post.
    let kept = (position == 0 && whole)
        .then(|| snapshot.first_page.get_or_init(render))
        .filter(|page| page.limit == limit);
    let (posts_json, next_cursor) = match kept {
        Some(page) => (page.posts_json.clone(), page.next_cursor.clone()),
        None => {
            let page = render();
            (page.posts_json, page.next_cursor)
        }
    };
    let total_count = if whole {
        snapshot.posts.len()
    } else {
        not_deleted(&snapshot, deleted, 0).count()
    };
    FeedPage {
        degraded: snapshot.degraded.clone(),
        total_count,
        snapshot,
        cache_hit,
        posts_json,
        next_cursor,
        is_stand_in: false,
    }
}

/// Returns positions and posts from `position` on, without deleted posts.
fn not_deleted<'a>(
    snapshot: &'a Snapshot,
    deleted: &'a Deleted,
    position: usize,
) -> impl Iterator<Item = (usize, &'a SnapshotPost)> {
    let places = snapshot.posts.iter().enumerate().skip(position);
    places.filter(|(_, post)| !deleted.contains(post.post_id))
}

fn render(
    snapshot: &Snapshot,
    key: &CursorKey,
    deleted: &Deleted,
    position: usize,
    limit: usize,
) -> FirstPage {
    let mut rest = not_deleted(snapshot, deleted, position);
    let posts: Vec<FeedPost> = rest
        .by_ref()
        .take(limit)
        .map(|(_, post)| FeedPost::from(post))
        .collect();
    let next_cursor = rest.next().map(|(place, _)| {
        key.encode(
            snapshot.viewer,
            Cursor {
                ranking_id: snapshot.ranking_id,
                position: u32::try_from(place).unwrap_or(u32::MAX),
            },
        )
    });
    FirstPage {
        limit,
        // Serialising plain numbers and strings to memory cannot fail, and an empty page would
        // still be valid JSON.
        posts_json: serde_json::to_vec(&posts)
            .map_or_else(|_| Bytes::from_static(b"[]"), Bytes::from),
        next_cursor,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use nova_model::deleted::DeletedPosts;
    use nova_model::features::Sources;
    use nova_model::post::Counters;
    use nova_model::snapshot::{Algo, ServedBy, ServedPolicy};
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;
    use uuid::Uuid;

    const NOW_MS: u64 = 1_750_000_000_000;

    fn snapshot(posts: u64) -> Arc<Snapshot> {
        let post = |post_id| SnapshotPost {
            post_id,
            author_id: 1,
            created_at_ms: NOW_MS,
            counters: Counters::default(),
            score: Some(1.0),
            sources: Sources::RECENT,
        };
        Arc::new(Snapshot {
            ranking_id: Uuid::now_v7(),
            viewer: 7,
            algo: Algo::Ranked,
            served_by: ServedBy::Policy,
            fallback: false,
            degraded: Vec::new(),
            policy: ServedPolicy::native(Algo::Ranked),
            assignment: None,
            created: Instant::now(),
            created_at_ms: NOW_MS,
            seen_version: 1,
            posts: (1..=posts).map(post).collect(),
            first_page: OnceLock::new(),
            whole_in: AtomicU64::new(0),
        })
    }

    /// Returns the post ids of every page of a cursor chain.
    fn pages(snapshot: &Arc<Snapshot>, deleted: &Deleted, limit: usize) -> Vec<Vec<u64>> {
        let key = CursorKey::of_test(b"a key for tests that is long enough");
        let (mut pages, mut position) = (Vec::new(), 0);
        loop {
            let page = page(snapshot.clone(), &key, deleted, position, limit, true);
            let posts: Vec<serde_json::Value> = serde_json::from_slice(&page.posts_json).unwrap();
            pages.push(
                posts
                    .iter()
                    .map(|post| post["post_id"].as_u64().unwrap())
                    .collect(),
            );
            match page.next_cursor {
                None => return pages,
                Some(cursor) => {
                    position = key.decode(7, &cursor).unwrap().position as usize;
                }
            }
        }
    }

    #[test]
    fn a_deleted_post_is_on_no_page_and_the_pages_stay_full() {
        let (snapshot, deleted) = (snapshot(7), DeletedPosts::default());
        assert_eq!(
            pages(&snapshot, &deleted.current(), 3),
            [vec![1, 2, 3], vec![4, 5, 6], vec![7]]
        );
        deleted.add(&[(2, NOW_MS), (7, NOW_MS), (99, NOW_MS)], NOW_MS);
        assert_eq!(
            pages(&snapshot, &deleted.current(), 3),
            [vec![1, 3, 4], vec![5, 6]]
        );
    }

    #[test]
    fn the_total_count_excludes_deleted_posts() {
        let (snapshot, deleted) = (snapshot(3), DeletedPosts::default());
        deleted.add(&[(3, NOW_MS)], NOW_MS);
        let key = CursorKey::of_test(b"a key for tests that is long enough");
        let page = page(snapshot, &key, &deleted.current(), 0, 50, true);
        assert_eq!(page.total_count, 2);
    }
}
