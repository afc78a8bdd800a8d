//! A random community, loaded through import and the sink, against a model that computes every
//! answer the slow way from the words of SEMANTICS.

use super::EmbeddedStore;
use crate::import::{ImportOptions, import_dir};
use crate::stores::*;
use chrono::DateTime;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use uuid::Uuid;

const NOW_MS: u64 = 1_773_146_096_789;
const USERS: u64 = 80;
const POSTS: u64 = 600;

/// Something that counts: an event, or a row of history as if it were one.
#[derive(Debug, Clone)]
struct Happening {
    at_ms: u64,
    user: Option<u64>,
    post: u64,
    author: u64,
    action: Action,
    times: u64,
    dwell_ms: u64,
}

#[derive(Debug, Default)]
struct Model {
    posts: Vec<Post>,
    deleted: BTreeSet<u64>,
    follows: BTreeSet<(u64, u64)>,
    happenings: Vec<Happening>,
    /// (viewer, post, author, accepted, action)
    shown: Vec<(u64, u64, u64, u64, Action)>,
}

impl Model {
    fn candidates(&self, viewer: u64, max_age_ms: u64) -> impl Iterator<Item = &Post> {
        self.posts.iter().filter(move |post| {
            !self.deleted.contains(&post.post_id)
                && post.author_id != viewer
                && post.created_at_ms <= NOW_MS
                && NOW_MS - post.created_at_ms <= max_age_ms
        })
    }

    fn newest(mut posts: Vec<Post>, limit: usize) -> Vec<Post> {
        posts.sort_by_key(|post| Reverse((post.created_at_ms, post.post_id)));
        posts.truncate(limit);
        posts
    }

    fn followees(&self, viewer: u64, limit: usize) -> Vec<Post> {
        let followed = |post: &&Post| self.follows.contains(&(viewer, post.author_id));
        Self::newest(
            self.candidates(viewer, 72 * HOUR_MS)
                .filter(followed)
                .copied()
                .collect(),
            limit,
        )
    }

    fn recent(&self, viewer: u64, limit: usize) -> Vec<Post> {
        Self::newest(
            self.candidates(viewer, 90 * DAY_MS).copied().collect(),
            limit,
        )
    }

    fn totals(&self, post: u64, from_ms: u64, before_ms: u64) -> Counters {
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

    fn trending(&self, viewer: u64, window_hours: u64, limit: usize) -> Vec<(Post, Counters)> {
        let hour = NOW_MS / HOUR_MS * HOUR_MS;
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

    fn affinities(&self, viewer: u64, actions: &[Action]) -> BTreeMap<u64, u64> {
        let from_ms = (NOW_MS - 90 * DAY_MS) / DAY_MS * DAY_MS;
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

    fn affinity_source(&self, viewer: u64, per_author: usize, limit: usize) -> Vec<Post> {
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

    /// (user, followers, score)
    fn suggestions(&self, viewer: u64, limit: usize) -> Vec<(u64, u64, f64)> {
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
}

fn time(at_ms: u64) -> String {
    DateTime::from_timestamp_millis(i64::try_from(at_ms).unwrap())
        .unwrap()
        .to_rfc3339()
}

/// Writes the CSV files of a random community, and the same into the model.
fn random_history(rng: &mut StdRng, dir: &std::path::Path) -> Model {
    let mut model = Model::default();
    let ago = |rng: &mut StdRng, max_ms: u64| NOW_MS - rng.random_range(0..max_ms);
    let mut users = String::from("user_id,created_at\n");
    for user in 1..=USERS {
        writeln!(users, "{user},{}", time(ago(rng, 100 * DAY_MS))).unwrap();
    }
    let mut posts = String::from("post_id,author_id,created_at,view_count\n");
    for post in 1..=POSTS {
        let author = rng.random_range(1..=USERS) * rng.random_range(1..=USERS) / USERS + 1;
        let author = author.min(USERS);
        let max_age = if rng.random_bool(0.5) {
            4 * DAY_MS
        } else {
            100 * DAY_MS
        };
        // Whole minutes, so that ties happen; a few in the future.
        let at_ms = (ago(rng, max_age) + rng.random_range(0..2) * HOUR_MS) / 60_000 * 60_000;
        let views = rng.random_range(0..5);
        writeln!(posts, "{post},{author},{},{views}", time(at_ms)).unwrap();
        model.posts.push(Post {
            post_id: post,
            author_id: author,
            created_at_ms: at_ms,
        });
        for action in [Action::View, Action::Impression] {
            let user = None;
            model.happenings.push(Happening {
                at_ms,
                user,
                post,
                author,
                action,
                times: views,
                dwell_ms: 0,
            });
        }
    }
    let mut follows = String::from("follower_id,following_id,created_at\n");
    for _ in 0..400 {
        let (who, whom) = (rng.random_range(1..=USERS), rng.random_range(1..=USERS));
        model.follows.insert((who, whom));
        writeln!(follows, "{who},{whom},{}", time(ago(rng, DAY_MS))).unwrap();
    }
    let (likes, comments) = random_reactions(rng, &mut model);
    for (name, text) in [
        ("users.csv", users),
        ("posts.csv", posts),
        ("follows.csv", follows),
        ("likes.csv", likes),
        ("comments.csv", comments),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    model
}

/// likes.csv, with anonymous ones, and comments.csv.
fn random_reactions(rng: &mut StdRng, model: &mut Model) -> (String, String) {
    let mut likes = String::from("like_id,post_id,user_id,created_at\n");
    let mut comments = String::from("comment_id,post_id,user_id,created_at\n");
    for row in 1..=1_500_u64 {
        let post = rng.random_range(1..=POSTS);
        let author = model.posts[usize::try_from(post - 1).unwrap()].author_id;
        let liker = rng.random_range(1..=USERS);
        let max_age = if rng.random_bool(0.5) {
            2 * DAY_MS
        } else {
            95 * DAY_MS
        };
        let at_ms = NOW_MS - rng.random_range(0..max_age);
        let (user, action) = if row % 4 == 0 {
            writeln!(comments, "{row},{post},{liker},{}", time(at_ms)).unwrap();
            (Some(liker), Action::Comment)
        } else {
            let user = rng.random_bool(0.7).then_some(liker);
            let text = user.map(|id| id.to_string()).unwrap_or_default();
            writeln!(likes, "{row},{post},{text},{}", time(at_ms)).unwrap();
            (user, Action::Like)
        };
        model.happenings.push(Happening {
            at_ms,
            user,
            post,
            author,
            action,
            times: 1,
            dwell_ms: 0,
        });
    }
    (likes, comments)
}

/// Batches of live events with many duplicates; what counts goes into the model.
async fn random_events(rng: &mut StdRng, store: &EmbeddedStore, model: &mut Model) {
    let mut known = BTreeSet::new();
    let mut sent: Vec<AcceptedEvent> = Vec::new();
    for through in 1..=20 {
        let mut batch = Vec::new();
        for _ in 0..150 {
            let repeat = !sent.is_empty() && rng.random_bool(0.2);
            let event = if repeat {
                sent[rng.random_range(0..sent.len())].clone()
            } else {
                random_event(rng, model)
            };
            let identity = (
                event.user_id,
                event.post_id,
                event.action.as_str(),
                event.event_time_ms / 1000,
            );
            if known.insert(identity) {
                model.happenings.push(Happening {
                    at_ms: event.event_time_ms,
                    user: Some(event.user_id),
                    post: event.post_id,
                    author: event.author_id,
                    action: event.action,
                    times: 1,
                    dwell_ms: event.dwell_ms.unwrap_or(0).into(),
                });
                model.shown.push((
                    event.user_id,
                    event.post_id,
                    event.author_id,
                    event.accepted_ms,
                    event.action,
                ));
            }
            sent.push(event.clone());
            batch.push(event);
        }
        store.write(&batch, through).await.unwrap();
    }
}

fn random_event(rng: &mut StdRng, model: &Model) -> AcceptedEvent {
    let post = model.posts[rng.random_range(0..model.posts.len())];
    let event_time_ms = NOW_MS - rng.random_range(0..30 * HOUR_MS);
    AcceptedEvent {
        event_id: Uuid::from_u128(rng.random()),
        event_time_ms,
        accepted_ms: event_time_ms + rng.random_range(0..HOUR_MS),
        user_id: rng.random_range(1..=USERS),
        post_id: post.post_id,
        author_id: post.author_id,
        action: Action::ALL[rng.random_range(0..Action::ALL.len())],
        dwell_ms: rng.random_bool(0.3).then(|| rng.random_range(0..9_000)),
        device: "phone".into(),
        app_ver: "1".into(),
        ranking_id: None,
    }
}

async fn compare_viewer(store: &EmbeddedStore, model: &Model, viewer: u64) {
    let short = |all: usize| if viewer.is_multiple_of(2) { all } else { 7 };
    let limit = |all: usize| u32::try_from(short(all)).unwrap();
    let followees = store.followees(viewer, NOW_MS, limit(500)).await.unwrap();
    assert_eq!(followees, model.followees(viewer, short(500)));
    let recent = store.recent(viewer, NOW_MS, limit(200)).await.unwrap();
    assert_eq!(recent, model.recent(viewer, short(200)));
    let trending = store.trending(viewer, NOW_MS, limit(200)).await.unwrap();
    let expected: Vec<Post> = model
        .trending(viewer, 24, short(200))
        .into_iter()
        .map(|(post, _)| post)
        .collect();
    assert_eq!(trending, expected);
    let affinity = store
        .affinity(viewer, NOW_MS, limit(20), limit(200))
        .await
        .unwrap();
    assert_eq!(
        affinity,
        model.affinity_source(viewer, short(20), short(200))
    );
    let affinities = store.affinities(viewer, NOW_MS).await.unwrap();
    let counted = [Action::Like, Action::Comment, Action::View];
    assert_eq!(
        affinities.into_iter().collect::<BTreeMap<_, _>>(),
        model.affinities(viewer, &counted)
    );

    let suggested = store
        .suggested_users(viewer, NOW_MS, limit(20))
        .await
        .unwrap();
    let suggested: Vec<_> = suggested
        .iter()
        .map(|user| (user.user_id, user.follower_count, user.affinity_score))
        .collect();
    assert_eq!(suggested, model.suggestions(viewer, short(20)));
    compare_shown(store, model, viewer).await;
}

async fn compare_shown(store: &EmbeddedStore, model: &Model, viewer: u64) {
    let since_ms = NOW_MS - DAY_MS;
    let mut impressions: BTreeMap<u64, u64> = BTreeMap::new();
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    for (who, post, author, accepted_ms, action) in &model.shown {
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
    let found = store.recent_impressions(viewer, since_ms).await.unwrap();
    assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), impressions);
    let found = store.seen_since(viewer, since_ms).await.unwrap();
    assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), seen);
}

#[tokio::test]
async fn sources_aggregates_and_suggestions_agree_with_the_model_on_random_communities() {
    for seed in 0..3 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let csv_dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path()).await.unwrap();
        let mut model = random_history(&mut rng, csv_dir.path());
        let options = ImportOptions {
            shift_to_now: false,
            now_ms: NOW_MS,
        };
        import_dir(&store, csv_dir.path(), &options, &mut |_| {})
            .await
            .unwrap();
        random_events(&mut rng, &store, &mut model).await;
        for _ in 0..20 {
            model.deleted.insert(rng.random_range(1..=POSTS));
        }
        for post in &model.deleted {
            let delete = sqlx::query("UPDATE posts SET deleted = 1 WHERE post_id = ?");
            delete
                .bind(i64::try_from(*post).unwrap())
                .execute(store.writer())
                .await
                .unwrap();
        }

        for viewer in 1..=10 {
            compare_viewer(&store, &model, viewer).await;
        }
        let ids: Vec<u64> = (1..=POSTS).collect();
        let counters = store.counters(&ids, NOW_MS).await.unwrap();
        let first_hour = (NOW_MS - 90 * DAY_MS) / HOUR_MS * HOUR_MS;
        for post in ids {
            let found = counters.get(&post).copied().unwrap_or_default();
            assert_eq!(
                found,
                model.totals(post, first_hour, u64::MAX),
                "post {post}"
            );
        }
        for hours in [1, 24, 168] {
            let found = store.trending_window(hours, NOW_MS, 50).await.unwrap();
            let found: Vec<_> = found
                .iter()
                .map(|post| (post.post_id, post.counters))
                .collect();
            let nobody = 0;
            let expected = model.trending(nobody, hours.into(), 50);
            let expected: Vec<_> = expected
                .iter()
                .map(|(post, sums)| (post.post_id, *sums))
                .collect();
            assert_eq!(found, expected);
        }
    }
}
