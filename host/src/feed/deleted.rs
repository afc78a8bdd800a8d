//! Posts deleted of late. Snapshots and cached candidates may still hold them; no answer may show them.
//!
//! The sources leave deleted posts out by themselves, so only what is younger than the longest-lived
//! ranking has to be remembered here.

use crate::stores::{DAY_MS, UnixMs};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;

/// What became of a post, at one version of its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    pub post_id: u64,
    /// Of two, the higher one is true.
    pub version: u64,
    pub deleted: bool,
}

/// A snapshot lives ten minutes from its last use; nobody pages through one for a day.
pub const KEPT_MS: u64 = DAY_MS;
/// Beyond this many the ones deleted longest ago are forgotten.
const POSTS_MAX: usize = 200_000;

#[derive(Debug, Clone, Default)]
pub struct DeletedPosts(Arc<ArcSwap<Deleted>>);

/// The deleted posts at one moment.
#[derive(Debug, Clone, Default)]
pub struct Deleted {
    /// Grows with every change, so that a snapshot is searched once and not for each page.
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

    /// Posts that are there again.
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

    /// Posts and when each was deleted. Those that are known already change nothing.
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
    fn what_no_snapshot_can_hold_any_more_is_forgotten() {
        let deleted = DeletedPosts::default();
        deleted.add(&[(1, 1_000)], 1_000);
        deleted.add(&[(2, 1_000 + KEPT_MS)], 1_000 + KEPT_MS);
        assert!(!deleted.current().contains(1));
        assert!(deleted.current().contains(2));
    }
}
