//! Tests of each query against small handmade data.

use super::{EmbeddedStore, hour_start};
use crate::ports::{CandidateStore, EventSink as _, ExposureStore as _, RelationalStore as _};
use nova_model::daily::DigestCounts;
use nova_model::event::{AcceptedEvent, Action};
use nova_model::exposure::{Exposure, VariationCount};
use nova_model::post::{Counters, Post};
use nova_model::time::{DAY_MS, HOUR_MS};
use std::collections::HashMap;
use uuid::Uuid;

const NOW_MS: u64 = 1_773_146_096_789; // 2026-03-10T12:34:56.789Z
const VIEWER: u64 = 1;
const MINUTE_MS: u64 = 60_000;

struct Fixture {
    store: EmbeddedStore,
    dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path()).await.unwrap();
        Self { store, dir }
    }

    async fn execute(&self, sql: &'static str, values: &[u64]) {
        let mut query = sqlx::query(sql);
        for value in values {
            query = query.bind(i64::try_from(*value).unwrap());
        }
        query.execute(self.store.writer()).await.unwrap();
    }

    async fn user(&self, user_id: u64) {
        self.execute(
            "INSERT INTO users (user_id, created_at_ms) VALUES (?, 0)",
            &[user_id],
        )
        .await;
    }

    async fn follow(&self, follower: u64, following: u64) {
        self.execute(
            "INSERT INTO follows VALUES (?, ?, 0)",
            &[follower, following],
        )
        .await;
    }

    async fn post(&self, post_id: u64, author_id: u64, created_at_ms: u64) {
        let sql = "INSERT INTO posts (post_id, author_id, created_at_ms) VALUES (?, ?, ?)";
        self.execute(sql, &[post_id, author_id, created_at_ms])
            .await;
    }

    async fn delete_post(&self, post_id: u64) {
        self.execute("UPDATE posts SET deleted = 1 WHERE post_id = ?", &[post_id])
            .await;
    }

    async fn write(&self, events: &[AcceptedEvent]) -> u64 {
        self.store.write(events, 0).await.unwrap()
    }
}

fn event(user_id: u64, post_id: u64, author_id: u64, action: Action, at_ms: u64) -> AcceptedEvent {
    AcceptedEvent {
        event_id: Uuid::new_v4(),
        event_time_ms: at_ms,
        accepted_ms: at_ms,
        user_id,
        post_id,
        author_id,
        action,
        dwell_ms: None,
        device: "phone".into(),
        app_ver: "1".into(),
        ranking_id: None,
    }
}

fn ids(posts: &[Post]) -> Vec<u64> {
    posts.iter().map(|post| post.post_id).collect()
}

#[tokio::test]
async fn followees_are_newest_first_then_higher_id_within_72_hours() {
    let f = Fixture::new().await;
    f.follow(VIEWER, 2).await;
    f.follow(VIEWER, VIEWER).await;
    let edge = NOW_MS - 72 * HOUR_MS;
    for (post, author, at) in [
        (10, 2, NOW_MS),
        (11, 2, NOW_MS - 5),
        (12, 2, NOW_MS - 5),
        (13, 2, edge),
        (14, 2, edge - 1),
        (15, 2, NOW_MS + 1),
        (16, 3, NOW_MS),
        (17, VIEWER, NOW_MS),
        (18, 2, NOW_MS - 1),
    ] {
        f.post(post, author, at).await;
    }
    f.delete_post(18).await;
    assert_eq!(
        ids(&f.store.followees(VIEWER, NOW_MS, 500).await.unwrap()),
        [10, 12, 11, 13]
    );
    assert_eq!(
        ids(&f.store.followees(VIEWER, NOW_MS, 2).await.unwrap()),
        [10, 12]
    );
}

#[tokio::test]
async fn trending_weighs_shares_three_comments_two_and_counts_whole_hours_only() {
    let f = Fixture::new().await;
    for post in 10..=18 {
        f.post(post, 2, NOW_MS - DAY_MS).await;
    }
    f.post(19, VIEWER, NOW_MS - DAY_MS).await;
    f.post(20, 2, NOW_MS + 1).await;
    f.delete_post(18).await;
    let hour = hour_start(NOW_MS);
    let oldest = hour - 24 * HOUR_MS;
    f.write(&[
        event(5, 10, 2, Action::Like, oldest),
        event(5, 11, 2, Action::Comment, hour + 1),
        event(5, 12, 2, Action::Share, NOW_MS),
        event(5, 13, 2, Action::Share, NOW_MS),
        event(5, 14, 2, Action::Share, oldest - 1),
        event(5, 15, 2, Action::Like, hour + HOUR_MS),
        event(5, 16, 2, Action::View, NOW_MS),
        event(5, 18, 2, Action::Share, NOW_MS),
        event(5, 19, VIEWER, Action::Share, NOW_MS),
        event(5, 20, 2, Action::Share, NOW_MS),
    ])
    .await;
    assert_eq!(
        ids(&f.store.trending(VIEWER, NOW_MS, 200).await.unwrap()),
        [13, 12, 11, 10]
    );
    assert_eq!(
        ids(&f.store.trending(VIEWER, NOW_MS, 1).await.unwrap()),
        [13]
    );

    let window = f.store.trending_window(24, NOW_MS, 200).await.unwrap();
    let found: Vec<_> = window
        .iter()
        .map(|post| (post.post_id, post.counters.engagement()))
        .collect();
    assert_eq!(found, [(19, 3), (13, 3), (12, 3), (11, 2), (10, 1)]);
    assert!(window.iter().all(|post| post.window_start_ms == oldest));
    let one_hour = f.store.trending_window(1, NOW_MS, 2).await.unwrap();
    assert_eq!(
        one_hour.iter().map(|post| post.post_id).collect::<Vec<_>>(),
        [19, 13]
    );
}

#[tokio::test]
async fn a_trending_window_counts_only_the_views_and_exposures_of_its_hours() {
    let f = Fixture::new().await;
    f.post(10, 2, NOW_MS - DAY_MS).await;
    f.write(&[
        event(5, 10, 2, Action::Like, NOW_MS),
        event(5, 10, 2, Action::View, NOW_MS - HOUR_MS),
        event(6, 10, 2, Action::Impression, NOW_MS),
        event(5, 10, 2, Action::View, NOW_MS - 5 * HOUR_MS),
    ])
    .await;
    let window = f.store.trending_window(1, NOW_MS, 10).await.unwrap();
    let expected = Counters {
        views: 1,
        likes: 1,
        exposures: 1,
        ..Counters::default()
    };
    assert_eq!(window[0].counters, expected);
}

#[tokio::test]
async fn affinity_returns_posts_of_engaged_authors_and_limits_those_of_one_author() {
    let f = Fixture::new().await;
    for n in 0..5 {
        f.post(10 + n, 2, NOW_MS - 10 * DAY_MS - n).await;
        f.post(20 + n, 3, NOW_MS - 20 * DAY_MS).await;
    }
    f.post(30, 4, NOW_MS).await;
    f.post(40, VIEWER, NOW_MS).await;
    f.post(50, 2, NOW_MS - 90 * DAY_MS - 1).await;
    f.write(&[
        event(VIEWER, 10, 2, Action::Like, NOW_MS),
        event(VIEWER, 20, 3, Action::Comment, NOW_MS),
        event(VIEWER, 21, 3, Action::View, NOW_MS),
        event(VIEWER, 30, 4, Action::View, NOW_MS),
        event(VIEWER, 40, VIEWER, Action::Like, NOW_MS),
    ])
    .await;
    let posts = f.store.affinity(VIEWER, NOW_MS, 3, 200).await.unwrap();
    assert_eq!(ids(&posts), [24, 23, 22, 10, 11, 12]);
    assert_eq!(
        ids(&f.store.affinity(VIEWER, NOW_MS, 20, 6).await.unwrap()),
        [24, 23, 22, 21, 20, 10]
    );
}

#[tokio::test]
async fn affinity_covers_90_days_and_starts_at_a_whole_day() {
    let f = Fixture::new().await;
    let edge = NOW_MS - 90 * DAY_MS;
    let first_day = edge - edge % DAY_MS;
    f.write(&[
        event(VIEWER, 10, 2, Action::Like, first_day),
        event(VIEWER, 11, 3, Action::Like, first_day - 1),
        event(VIEWER, 12, 4, Action::Share, NOW_MS),
    ])
    .await;
    let affinities = f.store.affinities(VIEWER, NOW_MS).await.unwrap();
    assert_eq!(affinities, HashMap::from([(2, 1)]));
}

#[tokio::test]
async fn recent_returns_the_newest_posts_of_all_authors_except_the_viewer() {
    let f = Fixture::new().await;
    let edge = NOW_MS - 90 * DAY_MS;
    for (post, author, at) in [
        (10, 2, edge),
        (11, 2, edge - 1),
        (12, 3, NOW_MS),
        (13, VIEWER, NOW_MS),
        (14, 4, NOW_MS + 1),
    ] {
        f.post(post, author, at).await;
    }
    assert_eq!(
        ids(&f.store.recent(VIEWER, NOW_MS, 200).await.unwrap()),
        [12, 10]
    );
    assert_eq!(ids(&f.store.recent(VIEWER, NOW_MS, 1).await.unwrap()), [12]);
}

#[tokio::test]
async fn the_timeline_keeps_followees_and_fills_up_with_the_newest() {
    let f = Fixture::new().await;
    f.follow(VIEWER, 2).await;
    f.post(10, 2, NOW_MS - 70 * HOUR_MS).await;
    f.post(11, 2, NOW_MS - 71 * HOUR_MS).await;
    for n in 0..5 {
        f.post(20 + n, 3, NOW_MS - n).await;
    }
    let timeline = f.store.timeline(VIEWER, NOW_MS, 4).await.unwrap();
    let found: Vec<_> = timeline
        .iter()
        .map(|found| (found.post.post_id, found.followed))
        .collect();
    assert_eq!(found, [(20, false), (21, false), (10, true), (11, true)]);
    assert_eq!(
        f.store.timeline(VIEWER, NOW_MS, 500).await.unwrap().len(),
        7
    );
}

#[tokio::test]
async fn counters_sum_each_action_and_the_dwell_of_all_actions_over_90_days() {
    let f = Fixture::new().await;
    f.post(10, 2, NOW_MS).await;
    let edge = hour_start(NOW_MS - 90 * DAY_MS);
    let dwell = AcceptedEvent {
        dwell_ms: Some(300),
        ..event(5, 10, 2, Action::Dwell, NOW_MS)
    };
    let view = AcceptedEvent {
        dwell_ms: Some(40),
        ..event(5, 10, 2, Action::View, NOW_MS)
    };
    f.write(&[
        dwell,
        view,
        event(5, 10, 2, Action::Like, edge),
        event(6, 10, 2, Action::Like, edge - 1),
        event(5, 10, 2, Action::Comment, NOW_MS),
        event(5, 10, 2, Action::Share, NOW_MS),
        event(5, 10, 2, Action::Impression, NOW_MS),
    ])
    .await;
    let expected = Counters {
        views: 1,
        likes: 1,
        comments: 1,
        shares: 1,
        dwell_ms_sum: 340,
        exposures: 1,
    };
    let counters = f.store.counters(&[10, 11], NOW_MS).await.unwrap();
    assert_eq!(counters, HashMap::from([(10, expected)]));
    let (post, of_post) = f.store.post_metrics(10, NOW_MS).await.unwrap().unwrap();
    assert_eq!((post.author_id, of_post), (2, expected));
    assert_eq!(f.store.post_metrics(99, NOW_MS).await.unwrap(), None);
}

#[tokio::test]
async fn an_event_counts_once_within_a_batch_and_across_batches() {
    let f = Fixture::new().await;
    let at = NOW_MS - NOW_MS % 1000;
    let first = event(5, 10, 2, Action::Like, at);
    let same_second = event(5, 10, 2, Action::Like, at + 999);
    let next_second = event(5, 10, 2, Action::Like, at + 1000);
    let same_id = AcceptedEvent {
        event_id: first.event_id,
        ..event(5, 11, 2, Action::View, at)
    };
    let same_id_other_user = AcceptedEvent {
        event_id: first.event_id,
        ..event(6, 10, 2, Action::Like, at)
    };
    assert_eq!(
        f.store
            .write(&[first.clone(), same_second.clone()], 2)
            .await
            .unwrap(),
        1
    );
    let batch = [first, same_second, next_second, same_id, same_id_other_user];
    assert_eq!(f.store.write(&batch, 5).await.unwrap(), 2);
    assert_eq!(f.store.write(&batch, 5).await.unwrap(), 0);
    let counters = f.store.counters(&[10, 11], NOW_MS).await.unwrap();
    assert_eq!(
        counters,
        HashMap::from([(
            10,
            Counters {
                likes: 3,
                ..Counters::default()
            }
        )])
    );
    assert_eq!(
        f.store.affinities(5, NOW_MS).await.unwrap(),
        HashMap::from([(2, 2)])
    );
}

#[tokio::test]
async fn written_through_never_goes_back_and_survives_reopening() {
    let f = Fixture::new().await;
    assert_eq!(f.store.written_through().await.unwrap(), 0);
    f.store
        .write(&[event(5, 10, 2, Action::Like, NOW_MS)], 7)
        .await
        .unwrap();
    f.store.write(&[], 3).await.unwrap();
    let again = EmbeddedStore::open(f.dir.path()).await.unwrap();
    assert_eq!(again.written_through().await.unwrap(), 7);
}

#[tokio::test]
async fn seen_and_recent_impressions_use_the_time_of_acceptance() {
    let f = Fixture::new().await;
    let accepted = |event: AcceptedEvent, accepted_ms| AcceptedEvent {
        accepted_ms,
        ..event
    };
    let earlier = NOW_MS - 2 * DAY_MS;
    f.write(&[
        accepted(event(VIEWER, 10, 2, Action::Impression, earlier), NOW_MS),
        accepted(event(VIEWER, 10, 2, Action::View, earlier), NOW_MS + 5),
        accepted(event(VIEWER, 11, 2, Action::Impression, NOW_MS), NOW_MS - 1),
        event(VIEWER, 12, 3, Action::Like, NOW_MS),
        event(9, 13, 2, Action::Impression, NOW_MS),
    ])
    .await;
    let impressions = f.store.recent_impressions(VIEWER, NOW_MS).await.unwrap();
    assert_eq!(impressions, HashMap::from([(2, 1)]));
    assert_eq!(
        f.store.seen_since(VIEWER, NOW_MS).await.unwrap(),
        [(10, NOW_MS + 5)]
    );
}

#[tokio::test]
async fn suggestions_count_people_once_and_break_ties_by_followers_then_id() {
    let f = Fixture::new().await;
    for user in 1..=12 {
        f.user(user).await;
    }
    // Users 4 and 5 follow the viewer's followees (4 follows both) and lead to 6, 7 and 8. The
    // viewer only engages with 9.
    for (follower, following) in [
        (VIEWER, 2),
        (VIEWER, 3),
        (4, 2),
        (4, 3),
        (5, 3),
        (4, 6),
        (5, 6),
        (4, 7),
        (5, 8),
        (4, VIEWER),
        (10, 8),
        (4, 99),
    ] {
        f.follow(follower, following).await;
    }
    f.write(&[
        event(VIEWER, 20, 9, Action::View, NOW_MS),
        event(VIEWER, 21, 2, Action::Like, NOW_MS),
        event(VIEWER, 22, VIEWER, Action::Like, NOW_MS),
        event(VIEWER, 23, 98, Action::Like, NOW_MS),
    ])
    .await;
    let users = f.store.suggested_users(VIEWER, NOW_MS, 20).await.unwrap();
    let found: Vec<_> = users
        .iter()
        .map(|user| (user.user_id, user.follower_count))
        .collect();
    assert_eq!(found, [(6, 2), (8, 2), (7, 1), (9, 0)]);
    assert!((users[0].affinity_score - 2f64.ln_1p()).abs() < 1e-12);
    let best_two = f.store.suggested_users(VIEWER, NOW_MS, 2).await.unwrap();
    assert_eq!(
        best_two.iter().map(|user| user.user_id).collect::<Vec<_>>(),
        [6, 8]
    );
}

#[tokio::test]
async fn expiry_deletes_only_rows_outside_every_window() {
    let f = Fixture::new().await;
    f.write(&[
        event(VIEWER, 10, 2, Action::Like, NOW_MS - 93 * DAY_MS),
        event(VIEWER, 10, 2, Action::Like, NOW_MS - 90 * DAY_MS),
        event(VIEWER, 10, 2, Action::Like, NOW_MS - 29 * DAY_MS),
    ])
    .await;
    let before = f.store.counters(&[10], NOW_MS).await.unwrap();
    let expired = f.store.expire(NOW_MS).await.unwrap();
    assert_eq!(
        (
            expired.post_buckets,
            expired.affinity_buckets,
            expired.events
        ),
        (1, 1, 2)
    );
    assert_eq!(f.store.counters(&[10], NOW_MS).await.unwrap(), before);
}

#[tokio::test]
async fn a_schema_from_a_newer_version_is_refused_with_both_versions() {
    let f = Fixture::new().await;
    f.execute("PRAGMA user_version = 99", &[]).await;
    let error = EmbeddedStore::open(f.dir.path()).await.unwrap_err();
    assert!(format!("{error:#}").contains("version 99"), "{error:#}");
}

#[tokio::test]
async fn a_second_process_reads_and_writes_the_same_file_while_the_first_is_open() {
    let f = Fixture::new().await;
    let other = EmbeddedStore::open(f.dir.path()).await.unwrap();
    let write = |store: EmbeddedStore, user: u64| async move {
        for n in 0..20 {
            let like = event(user, 10, 2, Action::Like, NOW_MS + n * 1000);
            store.write(&[like], 0).await.unwrap();
        }
    };
    tokio::join!(write(f.store.clone(), 5), write(other.clone(), 6));
    for store in [&f.store, &other] {
        assert_eq!(store.counters(&[10], NOW_MS).await.unwrap()[&10].likes, 40);
    }
}

#[tokio::test]
async fn every_query_is_reported_to_the_observer_even_if_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = heard.clone();
    let observer: super::QueryObserver =
        std::sync::Arc::new(move |query, _, ok| sink.lock().unwrap().push((query, ok)));
    let store = EmbeddedStore::open_observed(dir.path(), observer)
        .await
        .unwrap();
    CandidateStore::ping(&store).await.unwrap();
    sqlx::query("DROP TABLE follows")
        .execute(store.writer())
        .await
        .unwrap();
    let error = store.followees(VIEWER, NOW_MS, 1).await.unwrap_err();
    assert_eq!(
        (error.store, error.query, error.retryable),
        ("sqlite", "followees", false)
    );
    assert_eq!(
        *heard.lock().unwrap(),
        [("ping", true), ("followees", false)]
    );
}

#[tokio::test]
async fn a_file_held_by_another_writer_is_a_retryable_failure() {
    let busy = sqlx::Error::PoolTimedOut;
    assert!(super::is_retryable(&busy.into()));
    assert!(!super::is_retryable(&sqlx::Error::RowNotFound.into()));
    let f = Fixture::new().await;
    let other = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(f.dir.path().join("nova.db"))
        .busy_timeout(std::time::Duration::ZERO);
    let mut other = sqlx::ConnectOptions::connect(&other).await.unwrap();
    let held = f
        .store
        .writer()
        .begin_with("BEGIN IMMEDIATE")
        .await
        .unwrap();
    let error = sqlx::query("DELETE FROM users")
        .execute(&mut other)
        .await
        .unwrap_err();
    drop(held);
    assert!(super::is_retryable(&error.into()));
}

fn exposure(user_id: u64, served_at_ms: u64, digest: &str, posts: &[(u64, &str)]) -> Exposure {
    Exposure {
        ranking_id: Uuid::new_v4(),
        request_id: "r".into(),
        user_id,
        served_at_ms,
        served_by: "policy".into(),
        policy: "baseline@1.0.0".into(),
        effective_digest: digest.into(),
        experiment: Some("recency".into()),
        variation: Some(digest.into()),
        posts: posts
            .iter()
            .map(|(post, reason)| (*post, (*reason).to_owned().into()))
            .collect(),
        degraded: Vec::new(),
    }
}

#[tokio::test]
async fn variation_counts_include_each_ranking_and_each_viewer_once() {
    let f = Fixture::new().await;
    let first = exposure(1, NOW_MS, "a", &[]);
    let batch = [
        first.clone(),
        exposure(1, NOW_MS, "a", &[]),
        exposure(2, NOW_MS, "b", &[]),
    ];
    f.store.record(&batch).await.unwrap();
    f.store.record(&[first]).await.unwrap();
    let counts = f.store.variation_counts("recency").await.unwrap();
    let count = |variation: &str, exposures, viewers| VariationCount {
        variation: variation.into(),
        exposures,
        viewers,
    };
    assert_eq!(counts, [count("a", 2, 1), count("b", 1, 1)]);
    assert_eq!(f.store.variation_counts("other").await.unwrap(), []);
}

#[tokio::test]
async fn daily_metrics_attribute_each_event_to_the_named_ranking_or_the_latest_with_its_post() {
    let f = Fixture::new().await;
    let day = NOW_MS - NOW_MS % DAY_MS;
    let at = |minutes: u64| day + minutes * MINUTE_MS;
    let yesterday = exposure(
        1,
        day - MINUTE_MS,
        "old",
        &[(10, "recent"), (11, "followees")],
    );
    let mut today = exposure(
        1,
        at(10),
        "new",
        &[(10, "followees"), (12, "trending"), (12, "trending")],
    );
    today.degraded = vec!["redis".into()];
    f.store
        .record(&[yesterday.clone(), today.clone()])
        .await
        .unwrap();
    let named = |ranking: Uuid, event: AcceptedEvent| AcceptedEvent {
        ranking_id: Some(ranking),
        ..event
    };
    let dwelt = |dwell_ms, event: AcceptedEvent| AcceptedEvent {
        dwell_ms: Some(dwell_ms),
        ..event
    };
    f.write(&[
        event(1, 10, 2, Action::Impression, at(5)), // before today's ranking: old, recommended
        dwelt(100, event(1, 10, 2, Action::View, at(20))), // new, followees
        event(1, 11, 2, Action::Impression, at(21)), // only in the old one
        event(1, 12, 2, Action::Impression, at(22)), // new, recommended
        named(
            yesterday.ranking_id,
            event(1, 10, 2, Action::Impression, at(23)),
        ),
        named(today.ranking_id, event(2, 12, 2, Action::View, at(24))), // served to another viewer
        event(1, 99, 2, Action::View, at(25)),                          // in no ranking
        dwelt(300, event(1, 12, 2, Action::Dwell, at(26))),
        event(1, 10, 2, Action::Impression, day - 1), // another day
        event(1, 10, 2, Action::Impression, day + DAY_MS),
    ])
    .await;
    let metrics = f.store.daily_metrics(day).await.unwrap();
    let expected = DigestCounts {
        impressions: 4,
        views: 3,
        recommended_impressions: 3,
        recommended_views: 0,
        dwell_p50_ms: Some(200.0),
        dwell_p95_ms: Some(290.0),
        posts_served: 3,
        posts_repeated: 1,
        rankings: 1,
        rankings_whole: 0,
    };
    assert_eq!(metrics.overall, expected);
    assert_eq!(metrics.by_digest, by_digest_of_that_day());
}

fn by_digest_of_that_day() -> [(String, DigestCounts); 2] {
    let old = DigestCounts {
        impressions: 3,
        recommended_impressions: 2,
        ..DigestCounts::default()
    };
    let new = DigestCounts {
        impressions: 1,
        views: 1,
        recommended_impressions: 1,
        dwell_p50_ms: Some(200.0),
        dwell_p95_ms: Some(290.0),
        posts_served: 3,
        posts_repeated: 1,
        rankings: 1,
        ..DigestCounts::default()
    };
    [("new".to_owned(), new), ("old".to_owned(), old)]
}
