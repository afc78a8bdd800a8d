//! The reference model: computes every result the slow way, directly from docs/semantics.md.

use super::USERS;
use nova_model::event::Action;
use nova_model::post::{Counters, Post};
use nova_model::time::{DAY_MS, HOUR_MS};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// An interaction that counts: an event, or a row of history that counts as one.
#[derive(Debug, Clone)]
pub struct Happening {
    pub at_ms: u64,
    pub user: Option<u64>,
    pub post: u64,
    pub author: u64,
    pub action: Action,
    pub times: u64,
    pub dwell_ms: u64,
}

/// The community that the stores should return at `now_ms`.
#[derive(Debug, Default)]
pub struct Model {
    pub now_ms: u64,
    pub posts: Vec<Post>,
    pub deleted: BTreeSet<u64>,
    pub follows: BTreeSet<(u64, u64)>,
    pub happenings: Vec<Happening>,
    /// (viewer, post, author, time of acceptance in ms, action)
    pub shown: Vec<(u64, u64, u64, u64, Action)>,
}

impl Model {
    fn candidates(&self, viewer: u64, max_age_ms: u64) -> impl Iterator<Item = &Post> {
        self.posts.iter().filter(move |post| {
            !self.deleted.contains(&post.post_id)
                && post.author_id != viewer
                && post.created_at_ms <= self.now_ms
                && self.now_ms - post.created_at_ms <= max_age_ms
        })
    }

    fn newest(mut posts: Vec<Post>, limit: usize) -> Vec<Post> {
        posts.sort_by_key(|post| Reverse((post.created_at_ms, post.post_id)));
        posts.truncate(limit);
        posts
    }

    pub fn followees(&self, viewer: u64, limit: usize) -> Vec<Post> {
        let followed = |post: &&Post| self.follows.contains(&(viewer, post.author_id));
        Self::newest(
            self.candidates(viewer, 72 * HOUR_MS)
                .filter(followed)
                .copied()
                .collect(),
            limit,
        )
    }

    pub fn recent(&self, viewer: u64, limit: usize) -> Vec<Post> {
        Self::newest(
            self.candidates(viewer, 90 * DAY_MS).copied().collect(),
            limit,
        )
    }

    pub fn totals(&self, post: u64, from_ms: u64, before_ms: u64) -> Counters {
        let mut totals = Counters::default();
        let within = |h: &&Happening| h.post == post && h.at_ms >= from_ms && h.at_ms < before_ms;
        for happening in self.happenings.iter().filter(within) {
            totals.dwell_ms_sum += happening.dwell_ms;
            *(match happening.action {
                Action::Impression => &mut totals.exposures,
                Action::View => &mut totals.views,
                Action::Like => &mut totals.likes,
                Action::Comment => &mut totals.comments,
                Action::Share => &mut totals.shares,
                Action::Dwell => continue,
            }) += happening.times;
        }
        totals
    }

    pub fn trending(&self, viewer: u64, window_hours: u64, limit: usize) -> Vec<(Post, Counters)> {
        let hour = self.now_ms / HOUR_MS * HOUR_MS;
        let mut posts: Vec<_> = self
            .candidates(viewer, u64::MAX)
            .map(|post| {
                (
                    *post,
                    self.totals(post.post_id, hour - window_hours * HOUR_MS, hour + HOUR_MS),
                )
            })
            .filter(|(_, counters)| counters.engagement() > 0)
            .collect();
        posts.sort_by_key(|(post, counters)| Reverse((counters.engagement(), post.post_id)));
        posts.truncate(limit);
        posts
    }

    pub fn affinities(&self, viewer: u64, actions: &[Action]) -> BTreeMap<u64, u64> {
        let from_ms = (self.now_ms - 90 * DAY_MS) / DAY_MS * DAY_MS;
        let mut sums = BTreeMap::new();
        for happening in &self.happenings {
            let counts = happening.user == Some(viewer)
                && happening.at_ms >= from_ms
                && actions.contains(&happening.action);
            if counts {
                *sums.entry(happening.author).or_default() += 1;
            }
        }
        sums
    }

    pub fn affinity_source(&self, viewer: u64, per_author: usize, limit: usize) -> Vec<Post> {
        let engaged = self.affinities(viewer, &[Action::Like, Action::Comment]);
        let all = self.affinities(viewer, &[Action::Like, Action::Comment, Action::View]);
        let mut posts = Vec::new();
        for author in engaged.keys() {
            let theirs = self
                .candidates(viewer, 90 * DAY_MS)
                .filter(|post| post.author_id == *author);
            posts.extend(Self::newest(theirs.copied().collect(), per_author));
        }
        posts.sort_by_key(|post| Reverse((all[&post.author_id], post.created_at_ms, post.post_id)));
        posts.truncate(limit);
        posts
    }

    /// Returns (user, followers, score).
    pub fn suggestions(&self, viewer: u64, limit: usize) -> Vec<(u64, u64, f64)> {
        let follows = |who, whom| self.follows.contains(&(who, whom));
        let interactions = self.affinities(viewer, &[Action::Like, Action::Comment, Action::View]);
        let mut found = Vec::new();
        for user in (1..=USERS).filter(|user| *user != viewer && !follows(viewer, *user)) {
            let kindred = |person: &u64| {
                *person != viewer
                    && (1..=USERS).any(|whom| follows(viewer, whom) && follows(*person, whom))
            };
            let shared = (1..=USERS)
                .filter(kindred)
                .filter(|person| follows(*person, user))
                .count();
            let interacted = interactions.get(&user).copied().unwrap_or(0);
            let followers = (1..=USERS).filter(|person| follows(*person, user)).count();
            if shared > 0 || interacted > 0 {
                let score = (shared as f64).ln_1p() + (interacted as f64).ln_1p();
                found.push((user, followers as u64, score));
            }
        }
        found.sort_by(|a, b| b.2.total_cmp(&a.2).then(b.1.cmp(&a.1)).then(a.0.cmp(&b.0)));
        found.truncate(limit);
        found
    }

    /// Returns the impressions by author, and the time when each post was last seen. Both
    /// include only what was accepted at or after `since_ms`.
    pub fn shown_to(&self, viewer: u64, since_ms: u64) -> (BTreeMap<u64, u64>, BTreeMap<u64, u64>) {
        let mut impressions: BTreeMap<u64, u64> = BTreeMap::new();
        let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
        for (who, post, author, accepted_ms, action) in &self.shown {
            if *who != viewer || *accepted_ms < since_ms {
                continue;
            }
            if *action == Action::Impression {
                *impressions.entry(*author).or_default() += 1;
            }
            if matches!(action, Action::Impression | Action::View) {
                let last = seen.entry(*post).or_default();
                *last = (*last).max(*accepted_ms);
            }
        }
        (impressions, seen)
    }
}
