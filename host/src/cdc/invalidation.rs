//! Invalidation after changes in PostgreSQL: cached feeds, suggestions, and posts that must no
//! longer be shown.

use super::change::RowChange;
use super::rows::{Post, Transition};
use crate::discover::suggested;
use futures::StreamExt as _;
use nova_model::deleted::Tombstone;
use nova_model::time::HOUR_MS;
use nova_stores::ports::{FeedCache, RelationalStore, StoreResult, ValueCache};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum followers of one author whose feeds are invalidated. The other feeds expire by their
/// TTL.
const FOLLOWERS_MAX: u32 = 10_000;
/// Authors whose followers are looked up concurrently.
const LOOKUPS_PARALLEL: usize = 8;
/// Limits of all look-ups of one round: their duration and the number of viewers that they
/// return. The consumer does not poll meanwhile, and a bulk load of posts has thousands of
/// authors. Feeds beyond the limits expire by their TTL.
const LOOKUPS_TIME: Duration = Duration::from_secs(3);
const VIEWERS_MAX: usize = 100_000;
/// Age up to which followees' posts are candidates. An older post changes no feed that needs an
/// update at once.
const NEWS_MS: u64 = 72 * HOUR_MS;
/// Concurrent calls to the cache.
const PARALLEL: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invalidation {
    /// The feeds of this author's followers lack the new post.
    NewPost { author_id: u64 },
    /// A deleted post must be in no response; a restored one may be in every response again.
    PostTombstone {
        post_id: u64,
        version: u64,
        deleted: bool,
    },
    /// The feed and the suggestions of this viewer depend on their earlier follows.
    FollowsChanged { follower_id: u64 },
}

/// Returns the invalidations that one change requires. A row read by a snapshot requires none,
/// because it did not change.
pub fn of_change(change: &RowChange) -> Vec<Invalidation> {
    match change {
        RowChange::Post(change) if !change.snapshot => of_post(change),
        RowChange::Follow(change) if !change.snapshot => {
            let row = change.after.as_ref().or(change.before.as_ref());
            let changed = row.map(|row| Invalidation::FollowsChanged {
                follower_id: row.follower_id,
            });
            changed.into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn of_post(change: &Transition<Post>) -> Vec<Invalidation> {
    let tombstone = |post: &Post, deleted| Invalidation::PostTombstone {
        post_id: post.post_id,
        version: change.lsn,
        deleted,
    };
    let lived = change.before.as_ref().is_some_and(|post| !post.deleted);
    match (change.before.as_ref(), change.after.as_ref()) {
        // An update whose old row was not logged may be the one that deleted the post.
        (_, Some(post)) if post.deleted => vec![tombstone(post, true)],
        (_, Some(_)) if lived => Vec::new(),
        // The post is new or restored.
        (_, Some(post)) => {
            let created_ms = post.created_at.timestamp_millis().max(0) as u64;
            let news =
                (created_ms + NEWS_MS > change.committed_ms).then_some(Invalidation::NewPost {
                    author_id: post.author_id,
                });
            std::iter::once(tombstone(post, false))
                .chain(news)
                .collect()
        }
        (Some(post), None) if lived => vec![tombstone(post, true)],
        _ => Vec::new(),
    }
}

/// Publishes deletions and restorations of posts to every host.
pub type OnTombstones = Arc<dyn Fn(Vec<Tombstone>) + Send + Sync>;

/// Carries out invalidations. A failure is logged, and the entry expires by its TTL: a cache
/// that is down must not block the changes.
#[derive(Clone)]
pub struct Invalidator {
    pub relational: Arc<dyn RelationalStore>,
    pub cache: Arc<dyn FeedCache>,
    pub values: Arc<dyn ValueCache>,
    pub on_tombstones: OnTombstones,
}

impl std::fmt::Debug for Invalidator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invalidator").finish_non_exhaustive()
    }
}

impl Invalidator {
    pub async fn apply(&self, invalidations: &BTreeSet<Invalidation>) {
        let (mut tombstones, mut viewers, mut authors) = (Vec::new(), BTreeSet::new(), Vec::new());
        for invalidation in invalidations {
            match *invalidation {
                Invalidation::PostTombstone {
                    post_id,
                    version,
                    deleted,
                } => tombstones.push(Tombstone {
                    post_id,
                    version,
                    deleted,
                }),
                Invalidation::FollowsChanged { follower_id } => {
                    viewers.insert(follower_id);
                    log(self.values.remove(&suggested::key(follower_id)).await);
                }
                Invalidation::NewPost { author_id } => authors.push(author_id),
            }
        }
        if !tombstones.is_empty() {
            (self.on_tombstones)(tombstones);
        }
        self.add_followers(&authors, &mut viewers).await;
        futures::stream::iter(viewers)
            .for_each_concurrent(PARALLEL, |viewer| async move {
                log(self.cache.invalidate(viewer).await);
            })
            .await;
    }

    /// Adds the followers of `authors` until the time or the room for viewers is used up.
    async fn add_followers(&self, authors: &[u64], viewers: &mut BTreeSet<u64>) {
        let mut asked = futures::stream::iter(authors.to_vec())
            .map(|author| self.relational.followers(author, FOLLOWERS_MAX))
            .buffer_unordered(LOOKUPS_PARALLEL);
        let deadline = Instant::now() + LOOKUPS_TIME;
        let mut answered = 0;
        while viewers.len() < VIEWERS_MAX
            && let Ok(Some(followers)) = tokio::time::timeout_at(deadline, asked.next()).await
        {
            answered += 1;
            viewers.extend(log(followers).unwrap_or_default());
        }
        let left = authors.len() - answered;
        if left > 0 {
            tracing::warn!(
                authors = left,
                viewers = viewers.len(),
                "too many new posts at once: feeds of these authors' followers stay cached until they expire"
            );
        }
    }
}

fn log<T>(result: StoreResult<T>) -> Option<T> {
    result
        .inspect_err(|error| tracing::warn!(%error, "could not invalidate cached feeds or suggestions after a change; they stay until they expire"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::rows::Follow;
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

    fn invalidated(before: Option<Post>, after: Option<Post>, snapshot: bool) -> Vec<Invalidation> {
        of_change(&RowChange::Post(Transition {
            before,
            after,
            lsn: 1,
            committed_ms: NOW_MS,
            snapshot,
        }))
    }

    fn tombstone(deleted: bool) -> Invalidation {
        Invalidation::PostTombstone {
            post_id: 10,
            version: 1,
            deleted,
        }
    }

    #[test]
    fn a_new_post_invalidates_its_authors_followers_unless_it_is_old_or_a_snapshot_read() {
        let news = Invalidation::NewPost { author_id: 1 };
        assert_eq!(
            invalidated(None, post(1, false), false),
            [tombstone(false), news]
        );
        let back = invalidated(post(1, true), post(1, false), false);
        assert_eq!(back, [tombstone(false), news]);
        assert_eq!(
            invalidated(None, post(73, false), false),
            [tombstone(false)]
        );
        assert_eq!(invalidated(None, post(1, false), true), []);
        assert_eq!(invalidated(post(1, false), post(1, false), false), []);
    }

    #[test]
    fn a_post_is_deleted_when_its_row_is_deleted_or_marked_as_deleted() {
        let tombstones = [tombstone(true)];
        assert_eq!(invalidated(post(1, false), None, false), tombstones);
        assert_eq!(
            invalidated(post(1, false), post(1, true), false),
            tombstones
        );
        assert_eq!(invalidated(None, post(1, true), false), tombstones);
        assert_eq!(
            invalidated(post(1, true), None, false),
            [],
            "it was deleted before"
        );
    }

    #[test]
    fn a_follow_and_an_unfollow_invalidate_the_follower() {
        let follow = || {
            Some(Follow {
                follower_id: 2,
                following_id: 1,
                created_at: DateTime::UNIX_EPOCH,
            })
        };
        for (before, after) in [(None, follow()), (follow(), None)] {
            let change = RowChange::Follow(Transition {
                before,
                after,
                lsn: 1,
                committed_ms: NOW_MS,
                snapshot: false,
            });
            assert_eq!(
                of_change(&change),
                [Invalidation::FollowsChanged { follower_id: 2 }]
            );
        }
    }
}
