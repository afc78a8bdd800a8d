//! What a change in PostgreSQL overtakes: cached feeds, suggestions, and posts that nobody may see any more.

use super::change::{Change, Transition};
use super::envelope::Post;
use crate::discover::suggested;
use crate::stores::{FeedCache, HOUR_MS, RelationalStore, StoreResult, ValueCache};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Beyond this many followers the TTL does the rest.
const FOLLOWERS_MAX: u32 = 10_000;
/// Followees' posts are candidates for so long; an older one changes no feed that anybody waits for.
const NEWS_MS: u64 = 72 * HOUR_MS;
/// Calls to the cache on their way at once.
const PARALLEL: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invalidation {
    /// The feeds of those who follow its author lack it.
    NewPost { author_id: u64 },
    /// No answer may show it.
    DeletedPost { post_id: u64 },
    /// Their feed and their suggestions rest on whom they followed before.
    FollowsChanged { follower_id: u64 },
}

/// What one change overtakes. A row that a snapshot read is no news.
pub fn of(change: &Change) -> Option<Invalidation> {
    match change {
        Change::Post(change) => of_post(change),
        Change::Follow(change) if !change.snapshot => {
            let row = change.after.as_ref().or(change.before.as_ref())?;
            Some(Invalidation::FollowsChanged {
                follower_id: row.follower_id,
            })
        }
        _ => None,
    }
}

fn of_post(change: &Transition<Post>) -> Option<Invalidation> {
    let living = |post: &&Post| !post.deleted;
    let before = change.before.as_ref().filter(living);
    match (before, change.after.as_ref()) {
        _ if change.snapshot => None,
        (None, Some(post)) if !post.deleted => {
            let created_ms = post.created_at.timestamp_millis().max(0) as u64;
            (created_ms + NEWS_MS > change.committed_ms).then_some(Invalidation::NewPost {
                author_id: post.author_id,
            })
        }
        // An update whose old row was not logged may be the one that deleted the post.
        (_, Some(post)) if post.deleted => Some(Invalidation::DeletedPost {
            post_id: post.post_id,
        }),
        (Some(post), None) => Some(Invalidation::DeletedPost {
            post_id: post.post_id,
        }),
        _ => None,
    }
}

/// Tells every host that posts were deleted.
pub type Bury = Arc<dyn Fn(Vec<u64>) -> BoxFuture<'static, StoreResult<()>> + Send + Sync>;

/// Carries invalidations out. What fails is logged and left to the TTL: a cache that is down must not hold changes up.
#[derive(Clone)]
pub struct Invalidator {
    pub relational: Arc<dyn RelationalStore>,
    pub cache: Arc<dyn FeedCache>,
    pub values: Arc<dyn ValueCache>,
    pub bury: Bury,
}

impl std::fmt::Debug for Invalidator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invalidator").finish_non_exhaustive()
    }
}

impl Invalidator {
    pub async fn apply(&self, invalidations: &BTreeSet<Invalidation>) {
        let (mut buried, mut viewers) = (Vec::new(), BTreeSet::new());
        for invalidation in invalidations {
            match *invalidation {
                Invalidation::DeletedPost { post_id } => buried.push(post_id),
                Invalidation::FollowsChanged { follower_id } => {
                    viewers.insert(follower_id);
                    log(self.values.remove(&suggested::key(follower_id)).await);
                }
                Invalidation::NewPost { author_id } => {
                    let followers = self.relational.followers(author_id, FOLLOWERS_MAX).await;
                    viewers.extend(log(followers).unwrap_or_default());
                }
            }
        }
        if !buried.is_empty() {
            log((self.bury)(buried).await);
        }
        futures::stream::iter(viewers)
            .for_each_concurrent(PARALLEL, |viewer| async move {
                log(self.cache.overtake(viewer).await);
            })
            .await;
    }
}

fn log<T>(result: StoreResult<T>) -> Option<T> {
    result
        .inspect_err(|error| tracing::warn!(%error, "a cache keeps what a change overtook"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::envelope::Follow;
    use chrono::DateTime;

    const NOW_MS: u64 = 1_750_000_000_000;

    fn post(age_hours: u64, deleted: bool) -> Option<Post> {
        Some(Post {
            post_id: 10,
            author_id: 1,
            created_at: DateTime::from_timestamp_millis((NOW_MS - age_hours * HOUR_MS) as i64)
                .unwrap_or_default(),
            deleted,
        })
    }

    fn overtaken(
        before: Option<Post>,
        after: Option<Post>,
        snapshot: bool,
    ) -> Option<Invalidation> {
        of(&Change::Post(Transition {
            before,
            after,
            lsn: 1,
            committed_ms: NOW_MS,
            snapshot,
        }))
    }

    #[test]
    fn a_new_post_overtakes_its_authors_followers_unless_it_is_history() {
        let news = Some(Invalidation::NewPost { author_id: 1 });
        assert_eq!(overtaken(None, post(1, false), false), news);
        assert_eq!(overtaken(post(1, true), post(1, false), false), news);
        assert_eq!(overtaken(None, post(73, false), false), None);
        assert_eq!(overtaken(None, post(1, false), true), None);
        assert_eq!(overtaken(post(1, false), post(1, false), false), None);
    }

    #[test]
    fn a_post_is_buried_when_its_row_goes_and_when_it_is_marked() {
        let buried = Some(Invalidation::DeletedPost { post_id: 10 });
        assert_eq!(overtaken(post(1, false), None, false), buried);
        assert_eq!(overtaken(post(1, false), post(1, true), false), buried);
        assert_eq!(overtaken(None, post(1, true), false), buried);
        assert_eq!(overtaken(post(1, true), None, false), None, "it was before");
    }

    #[test]
    fn whoever_follows_or_unfollows_is_overtaken() {
        let follow = || {
            Some(Follow {
                follower_id: 2,
                following_id: 1,
                created_at: DateTime::UNIX_EPOCH,
            })
        };
        for (before, after) in [(None, follow()), (follow(), None)] {
            let change = Change::Follow(Transition {
                before,
                after,
                lsn: 1,
                committed_ms: NOW_MS,
                snapshot: false,
            });
            assert_eq!(
                of(&change),
                Some(Invalidation::FollowsChanged { follower_id: 2 })
            );
        }
    }
}
