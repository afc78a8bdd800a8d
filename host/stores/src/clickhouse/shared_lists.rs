//! Lists that are the same for every viewer except for the viewer's own posts: trending and recent
//! posts. They are cached for a second, so that a hundred feed requests in a second cause one
//! query.
//!
//! The lists are longer than a feed needs, so that a viewer's own posts can be removed before
//! the limit is applied. If too few posts remain, the viewer's own query answers instead. A
//! viewer therefore gets what that query would have returned within the second.

use super::{ClickHouseStore, POST_WINDOW_MS};
use crate::guard::Failure;
use crate::ports::{StoreError, StoreResult};
use moka::future::Cache;
use nova_model::post::Post;
use nova_model::time::{DAY_MS, HOUR_MS, UnixMs};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

const TRENDING_POSTS: u32 = 400;
const RECENT_POSTS: u32 = 1_000;
/// Windows that are tried in turn until one holds enough posts. The newest posts of a large
/// community are minutes old, and searching 90 days for them takes fifty times as long.
const RECENT_WINDOWS_MS: [u64; 3] = [HOUR_MS, DAY_MS, POST_WINDOW_MS];
const KEPT_FOR: Duration = Duration::from_secs(1);
const NOBODY: u64 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Trending { hour: u64, window_hours: u32 },
    Recent { hour: u64 },
}

/// The cache of shared lists; clones share it.
#[derive(Clone)]
pub(super) struct SharedLists(Cache<Key, Arc<SharedList>>);

#[derive(Debug)]
pub(super) struct SharedList {
    posts: Vec<Post>,
    /// True if the list reached its limit, so there may be more posts.
    cut: bool,
}

impl Default for SharedLists {
    fn default() -> Self {
        let keys = 8;
        Self(
            Cache::builder()
                .max_capacity(keys)
                .time_to_live(KEPT_FOR)
                .build(),
        )
    }
}

impl SharedLists {
    pub async fn trending(
        &self,
        store: &ClickHouseStore,
        now_ms: UnixMs,
        window_hours: u32,
    ) -> StoreResult<Arc<SharedList>> {
        let hour = now_ms / HOUR_MS;
        let posts = store.most_engaged(NOBODY, window_hours, now_ms, TRENDING_POSTS);
        let key = Key::Trending { hour, window_hours };
        self.get(store, key, "trending", posts, TRENDING_POSTS)
            .await
    }

    pub async fn recent(
        &self,
        store: &ClickHouseStore,
        now_ms: UnixMs,
    ) -> StoreResult<Arc<SharedList>> {
        let posts = async {
            let mut posts = Vec::new();
            for window_ms in RECENT_WINDOWS_MS {
                posts = store
                    .recent_within(NOBODY, now_ms, window_ms, RECENT_POSTS)
                    .await?;
                if posts.len() as u64 >= u64::from(RECENT_POSTS) {
                    break;
                }
            }
            Ok(posts)
        };
        let hour = now_ms / HOUR_MS;
        self.get(store, Key::Recent { hour }, "recent", posts, RECENT_POSTS)
            .await
    }

    /// Returns a list from the cache or fetches it. Callers that arrive during a fetch wait for
    /// the same result. A failure is not cached.
    async fn get(
        &self,
        store: &ClickHouseStore,
        key: Key,
        query: &'static str,
        posts: impl Future<Output = Result<Vec<Post>, Failure>>,
        limit: u32,
    ) -> StoreResult<Arc<SharedList>> {
        let fetch = async {
            let posts = store.guard.run(query, posts).await?;
            let cut = posts.len() as u64 >= u64::from(limit);
            Ok(Arc::new(SharedList { posts, cut }))
        };
        self.0
            .try_get_with(key, fetch)
            .await
            .map_err(|error: Arc<StoreError>| StoreError::from_shared(&error))
    }
}

impl SharedList {
    /// Returns the first `limit` posts that are not the viewer's own, or `None` if a truncated
    /// list holds fewer than that.
    pub fn for_viewer(&self, viewer: u64, limit: u32) -> Option<Vec<Post>> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let others = self.posts.iter().filter(|post| post.author_id != viewer);
        let posts: Vec<Post> = others.take(limit).copied().collect();
        (posts.len() == limit || !self.cut).then_some(posts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(authors: &[u64], cut: bool) -> SharedList {
        let post = |&author_id: &u64| Post {
            post_id: 1,
            author_id,
            created_at_ms: 1,
        };
        let posts = authors.iter().map(post).collect();
        SharedList { posts, cut }
    }

    #[test]
    fn own_posts_are_removed_before_the_limit_and_a_truncated_list_that_is_too_short_is_none() {
        let count = |list: SharedList, limit| list.for_viewer(7, limit).map(|posts| posts.len());
        assert_eq!(count(list(&[7, 1, 2], true), 2), Some(2));
        assert_eq!(count(list(&[7, 1, 2], true), 3), None);
        assert_eq!(count(list(&[7, 1, 2], false), 3), Some(2));
    }
}
