//! What a change in PostgreSQL overtakes: cached feeds, suggestions, and posts that nobody may see any more.

use super::change::{Change, Transition};
use super::envelope::Post;
use crate::discover::suggested;
use crate::feed::deleted::Fate;
use crate::stores::{FeedCache, HOUR_MS, RelationalStore, StoreResult, ValueCache};
use futures::StreamExt as _;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Beyond this many followers the TTL does the rest.
const FOLLOWERS_MAX: u32 = 10_000;
/// Authors looked up at once.
const LOOKUPS_PARALLEL: usize = 8;
/// What all look-ups of one round may take, and bring: the consumer does not poll meanwhile, and a bulk load of posts
/// has thousands of authors. Beyond that the TTL does the rest, too.
const LOOKUPS_TIME: Duration = Duration::from_secs(3);
const VIEWERS_MAX: usize = 100_000;
/// Followees' posts are candidates for so long; an older one changes no feed that anybody waits for.
const NEWS_MS: u64 = 72 * HOUR_MS;
/// Calls to the cache on their way at once.
const PARALLEL: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invalidation {
    /// The feeds of those who follow its author lack it.
    NewPost { author_id: u64 },
    /// No answer may show it, or every answer may again.
    PostFate {
        post_id: u64,
        version: u64,
        deleted: bool,
    },
    /// Their feed and their suggestions rest on whom they followed before.
    FollowsChanged { follower_id: u64 },
}

/// What one change overtakes. A row that a snapshot read is no news.
pub fn of(change: &Change) -> Vec<Invalidation> {
    match change {
        Change::Post(change) if !change.snapshot => of_post(change),
        Change::Follow(change) if !change.snapshot => {
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
    let fate = |post: &Post, deleted| Invalidation::PostFate {
        post_id: post.post_id,
        version: change.lsn,
        deleted,
    };
    let lived = change.before.as_ref().is_some_and(|post| !post.deleted);
    match (change.before.as_ref(), change.after.as_ref()) {
        // An update whose old row was not logged may be the one that deleted the post.
        (_, Some(post)) if post.deleted => vec![fate(post, true)],
        (_, Some(_)) if lived => Vec::new(),
        // New, or there again.
        (_, Some(post)) => {
            let created_ms = post.created_at.timestamp_millis().max(0) as u64;
            let news =
                (created_ms + NEWS_MS > change.committed_ms).then_some(Invalidation::NewPost {
                    author_id: post.author_id,
                });
            std::iter::once(fate(post, false)).chain(news).collect()
        }
        (Some(post), None) if lived => vec![fate(post, true)],
        _ => Vec::new(),
    }
}

/// Tells every host what became of posts.
pub type Bury = Arc<dyn Fn(Vec<Fate>) + Send + Sync>;

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
        let (mut fates, mut viewers, mut authors) = (Vec::new(), BTreeSet::new(), Vec::new());
        for invalidation in invalidations {
            match *invalidation {
                Invalidation::PostFate {
                    post_id,
                    version,
                    deleted,
                } => fates.push(Fate {
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
        if !fates.is_empty() {
            (self.bury)(fates);
        }
        self.add_followers(&authors, &mut viewers).await;
        futures::stream::iter(viewers)
            .for_each_concurrent(PARALLEL, |viewer| async move {
                log(self.cache.overtake(viewer).await);
            })
            .await;
    }

    /// As many as there is time and room for.
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

    fn overtaken(before: Option<Post>, after: Option<Post>, snapshot: bool) -> Vec<Invalidation> {
        of(&Change::Post(Transition {
            before,
            after,
            lsn: 1,
            committed_ms: NOW_MS,
            snapshot,
        }))
    }

    fn fate(deleted: bool) -> Invalidation {
        Invalidation::PostFate {
            post_id: 10,
            version: 1,
            deleted,
        }
    }

    #[test]
    fn a_new_post_overtakes_its_authors_followers_unless_it_is_history() {
        let news = Invalidation::NewPost { author_id: 1 };
        assert_eq!(overtaken(None, post(1, false), false), [fate(false), news]);
        let back = overtaken(post(1, true), post(1, false), false);
        assert_eq!(back, [fate(false), news]);
        assert_eq!(overtaken(None, post(73, false), false), [fate(false)]);
        assert_eq!(overtaken(None, post(1, false), true), []);
        assert_eq!(overtaken(post(1, false), post(1, false), false), []);
    }

    #[test]
    fn a_post_is_buried_when_its_row_goes_and_when_it_is_marked() {
        let buried = [fate(true)];
        assert_eq!(overtaken(post(1, false), None, false), buried);
        assert_eq!(overtaken(post(1, false), post(1, true), false), buried);
        assert_eq!(overtaken(None, post(1, true), false), buried);
        assert_eq!(overtaken(post(1, true), None, false), [], "it was before");
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
                [Invalidation::FollowsChanged { follower_id: 2 }]
            );
        }
    }
}
