//! Recently deleted posts. Snapshots and cached candidates may still contain them, but no
//! response may show them: the feed's pages and the lists leave them out.
//!
//! The candidate sources leave out deleted posts themselves, so only deletions that are younger
//! than the longest-lived snapshot have to be remembered here.

use crate::time::{DAY_MS, UnixMs};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;

/// Deletion state of a post at one version of its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    pub post_id: u64,
    /// If two states of a post differ, the one with the higher version is valid.
    pub version: u64,
    pub deleted: bool,
}

/// Time for which a deletion is remembered. A snapshot lives for ten minutes after its last use,
/// and no client pages through one snapshot for a whole day.
pub const KEPT_MS: u64 = DAY_MS;
/// Largest number of deleted posts that are remembered. Beyond it, the oldest deletions are
/// forgotten.
const POSTS_MAX: usize = 200_000;

#[derive(Debug, Clone, Default)]
pub struct DeletedPosts(Arc<ArcSwap<Deleted>>);

/// The set of deleted posts at one moment.
#[derive(Debug, Clone, Default)]
pub struct Deleted {
    /// Increases with every change. A snapshot is therefore searched once per change and not
    /// once per page.
    pub generation: u64,
    at_ms: HashMap<u64, UnixMs>,
}

impl Deleted {
    pub fn contains(&self, post_id: u64) -> bool {
        self.at_ms.contains_key(&post_id)
    }

    pub fn is_empty(&self) -> bool {
        self.at_ms.is_empty()
    }
}

impl DeletedPosts {
    pub fn current(&self) -> arc_swap::Guard<Arc<Deleted>> {
        self.0.load()
    }

    /// Removes posts that exist again.
    pub fn remove(&self, posts: &[u64]) {
        let known = self.current();
        if posts.iter().all(|post| !known.contains(*post)) {
            return;
        }
        self.0.rcu(|current| {
            let mut next = Deleted::clone(current);
            next.generation += 1;
            for post in posts {
                next.at_ms.remove(post);
            }
            next
        });
    }

    /// Adds posts with the times of their deletion. Posts that are already known change nothing.
    pub fn add(&self, posts: &[(u64, UnixMs)], now_ms: UnixMs) {
        let known = self.current();
        if posts.iter().all(|(post, _)| known.contains(*post)) {
            return;
        }
        self.0.rcu(|current| {
            let mut next = Deleted::clone(current);
            next.generation += 1;
            next.at_ms.extend(posts.iter().copied());
            next.at_ms.retain(|_, at_ms| *at_ms + KEPT_MS > now_ms);
            forget_oldest(&mut next.at_ms);
            next
        });
    }
}

fn forget_oldest(at_ms: &mut HashMap<u64, UnixMs>) {
    let Some(excess) = at_ms
        .len()
        .checked_sub(POSTS_MAX)
        .filter(|excess| *excess > 0)
    else {
        return;
    };
    let mut times: Vec<UnixMs> = at_ms.values().copied().collect();
    let (_, youngest_to_go, _) = times.select_nth_unstable(excess - 1);
    let bound = *youngest_to_go;
    at_ms.retain(|_, at_ms| *at_ms > bound);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_that_is_known_changes_no_generation() {
        let deleted = DeletedPosts::default();
        deleted.add(&[(1, 1_000)], 1_000);
        let generation = deleted.current().generation;
        deleted.add(&[(1, 2_000)], 2_000);
        assert_eq!(deleted.current().generation, generation);
        deleted.add(&[(2, 2_000)], 2_000);
        assert!(deleted.current().generation > generation);
    }

    #[test]
    fn a_post_that_came_back_is_shown_again() {
        let deleted = DeletedPosts::default();
        deleted.add(&[(1, 1_000), (2, 1_000)], 1_000);
        let generation = deleted.current().generation;
        deleted.remove(&[1, 7]);
        assert!(!deleted.current().contains(1));
        assert!(deleted.current().contains(2));
        assert!(deleted.current().generation > generation);
    }

    #[test]
    fn a_deletion_older_than_every_snapshot_is_forgotten() {
        let deleted = DeletedPosts::default();
        deleted.add(&[(1, 1_000)], 1_000);
        deleted.add(&[(2, 1_000 + KEPT_MS)], 1_000 + KEPT_MS);
        assert!(!deleted.current().contains(1));
        assert!(deleted.current().contains(2));
    }
}
