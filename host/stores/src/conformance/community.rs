//! A random community: rows of history, batches of live events with repeats, and posts that are
//! deleted later. The same community is also built as a model.

use super::model::{Happening, Model};
use super::{POSTS, USERS};
use nova_model::event::{AcceptedEvent, Action};
use nova_model::post::Post;
use nova_model::time::{DAY_MS, HOUR_MS};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeSet;
use uuid::Uuid;

/// A row of `likes.csv` or `comments.csv`.
#[derive(Debug, Clone)]
pub struct Reaction {
    pub id: u64,
    pub post: u64,
    pub author: u64,
    pub user: Option<u64>,
    pub at_ms: u64,
}

#[derive(Debug)]
pub struct Community {
    pub now_ms: u64,
    /// (user, time in ms)
    pub users: Vec<(u64, u64)>,
    /// The posts and their view counts.
    pub posts: Vec<(Post, u64)>,
    /// (follower, following, time in ms). Some pairs occur twice.
    pub follows: Vec<(u64, u64, u64)>,
    pub likes: Vec<Reaction>,
    pub comments: Vec<Reaction>,
    /// Batches of live events. A fifth of the events repeat an earlier one.
    pub batches: Vec<Vec<AcceptedEvent>>,
    /// Posts to delete after everything else is loaded.
    pub deleted: BTreeSet<u64>,
}

impl Community {
    pub fn random(seed: u64, now_ms: u64) -> (Self, Model) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut made = Maker {
            model: Model {
                now_ms,
                ..Model::default()
            },
            rng: &mut rng,
            now_ms,
        };
        let users = (1..=USERS)
            .map(|user| (user, made.ago(100 * DAY_MS)))
            .collect();
        let posts = (1..=POSTS).map(|post| made.post(post)).collect();
        let follows = (0..400).map(|_| made.follow()).collect();
        let (mut likes, mut comments) = (Vec::new(), Vec::new());
        for id in 1..=1_500_u64 {
            if id % 4 == 0 {
                comments.push(made.reaction(id, Action::Comment));
            } else {
                likes.push(made.reaction(id, Action::Like));
            }
        }
        let batches = made.batches();
        let deleted: BTreeSet<u64> = (0..20).map(|_| made.rng.random_range(1..=POSTS)).collect();
        made.model.deleted.clone_from(&deleted);
        let model = made.model;
        let community = Self {
            now_ms,
            users,
            posts,
            follows,
            likes,
            comments,
            batches,
            deleted,
        };
        (community, model)
    }
}

struct Maker<'a> {
    rng: &'a mut StdRng,
    model: Model,
    now_ms: u64,
}

impl Maker<'_> {
    fn ago(&mut self, max_ms: u64) -> u64 {
        self.now_ms - self.rng.random_range(0..max_ms)
    }

    fn post(&mut self, post_id: u64) -> (Post, u64) {
        let author =
            self.rng.random_range(1..=USERS) * self.rng.random_range(1..=USERS) / USERS + 1;
        let author_id = author.min(USERS);
        let max_age = if self.rng.random_bool(0.5) {
            4 * DAY_MS
        } else {
            100 * DAY_MS
        };
        // Times are whole minutes, so that ties occur. A few lie in the future.
        let at_ms = (self.ago(max_age) + self.rng.random_range(0..2) * HOUR_MS) / 60_000 * 60_000;
        let views = self.rng.random_range(0..5);
        let post = Post {
            post_id,
            author_id,
            created_at_ms: at_ms,
        };
        self.model.posts.push(post);
        for action in [Action::View, Action::Impression] {
            self.model.happenings.push(Happening {
                at_ms,
                user: None,
                post: post_id,
                author: author_id,
                action,
                times: views,
                dwell_ms: 0,
            });
        }
        (post, views)
    }

    fn follow(&mut self) -> (u64, u64, u64) {
        let who = self.rng.random_range(1..=USERS);
        let whom = self.rng.random_range(1..=USERS);
        self.model.follows.insert((who, whom));
        (who, whom, self.ago(DAY_MS))
    }

    /// Makes a like or a comment. Likes may be anonymous.
    fn reaction(&mut self, id: u64, action: Action) -> Reaction {
        let post = self.any_post();
        let user = self.rng.random_range(1..=USERS);
        let max_age = if self.rng.random_bool(0.5) {
            2 * DAY_MS
        } else {
            95 * DAY_MS
        };
        let at_ms = self.ago(max_age);
        let is_known = action == Action::Comment || self.rng.random_bool(0.7);
        let user = is_known.then_some(user);
        self.model.happenings.push(Happening {
            at_ms,
            user,
            post: post.post_id,
            author: post.author_id,
            action,
            times: 1,
            dwell_ms: 0,
        });
        Reaction {
            id,
            post: post.post_id,
            author: post.author_id,
            user,
            at_ms,
        }
    }

    /// Makes batches of events, and adds the events that count to the model.
    fn batches(&mut self) -> Vec<Vec<AcceptedEvent>> {
        let mut known = BTreeSet::new();
        let mut sent: Vec<AcceptedEvent> = Vec::new();
        let mut batches = Vec::new();
        for _ in 0..20 {
            let begun = sent.len();
            for _ in 0..150 {
                let is_repeat = !sent.is_empty() && self.rng.random_bool(0.2);
                let event = if is_repeat {
                    self.repeat_of(&sent)
                } else {
                    self.event()
                };
                let identity = (
                    event.user_id,
                    event.post_id,
                    event.action.as_str(),
                    event.event_time_ms / 1000,
                );
                if known.insert(identity) {
                    self.count(&event);
                }
                sent.push(event);
            }
            batches.push(sent[begun..].to_vec());
        }
        batches
    }

    /// Returns the same event, sometimes under another id and at another moment of its second.
    fn repeat_of(&mut self, sent: &[AcceptedEvent]) -> AcceptedEvent {
        let event = sent[self.rng.random_range(0..sent.len())].clone();
        if self.rng.random_bool(0.5) {
            return event;
        }
        AcceptedEvent {
            event_id: Uuid::from_u128(self.rng.random()),
            event_time_ms: event.event_time_ms / 1000 * 1000 + self.rng.random_range(0..1000),
            ..event
        }
    }

    fn event(&mut self) -> AcceptedEvent {
        let post = self.any_post();
        let event_time_ms = self.ago(30 * HOUR_MS);
        AcceptedEvent {
            event_id: Uuid::from_u128(self.rng.random()),
            event_time_ms,
            accepted_ms: event_time_ms + self.rng.random_range(0..HOUR_MS),
            user_id: self.rng.random_range(1..=USERS),
            post_id: post.post_id,
            author_id: post.author_id,
            action: Action::ALL[self.rng.random_range(0..Action::ALL.len())],
            dwell_ms: (self.rng.random_bool(0.3)).then(|| self.rng.random_range(0..9_000)),
            device: "phone".into(),
            app_ver: "1".into(),
            ranking_id: None,
        }
    }

    fn count(&mut self, event: &AcceptedEvent) {
        self.model.happenings.push(Happening {
            at_ms: event.event_time_ms,
            user: Some(event.user_id),
            post: event.post_id,
            author: event.author_id,
            action: event.action,
            times: 1,
            dwell_ms: event.dwell_ms.unwrap_or(0).into(),
        });
        self.model.shown.push((
            event.user_id,
            event.post_id,
            event.author_id,
            event.accepted_ms,
            event.action,
        ));
    }

    fn any_post(&mut self) -> Post {
        self.model.posts[self.rng.random_range(0..self.model.posts.len())]
    }
}
