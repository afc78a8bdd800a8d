//! Tests of the relational store: the same assertions against SQLite and PostgreSQL, and
//! PostgreSQL's behaviour while the server is down.

use super::testing::TestDatabase;
use super::{PostgresStore, migrate, to_sql, to_time};
use crate::embedded::EmbeddedStore;
use crate::ports::RelationalStore;
use async_trait::async_trait;
use nova_model::post::TimelinePost;
use nova_model::time::HOUR_MS;
use nova_model::user::ViewerAttributes;
use std::time::Duration;

const NOW_MS: u64 = 1_773_146_096_789; // 2026-03-10T12:34:56.789Z
const VIEWER: u64 = 1;
const TIMEOUT: Duration = Duration::from_secs(5);

/// A store that a test can fill.
#[async_trait]
trait Fixture: RelationalStore {
    async fn user(&self, user_id: u64, country: &str, created_at_ms: u64);
    async fn follow(&self, follower: u64, following: u64);
    async fn post(&self, post_id: u64, author_id: u64, created_at_ms: u64);
    async fn delete_post(&self, post_id: u64);
}

#[async_trait]
impl Fixture for EmbeddedStore {
    async fn user(&self, user_id: u64, country: &str, created_at_ms: u64) {
        sqlx::query("INSERT INTO users (user_id, country, created_at_ms) VALUES (?, ?, ?)")
            .bind(to_sql(user_id))
            .bind(country)
            .bind(to_sql(created_at_ms))
            .execute(self.writer())
            .await
            .unwrap();
    }

    async fn follow(&self, follower: u64, following: u64) {
        sqlx::query("INSERT INTO follows VALUES (?, ?, 0)")
            .bind(to_sql(follower))
            .bind(to_sql(following))
            .execute(self.writer())
            .await
            .unwrap();
    }

    async fn post(&self, post_id: u64, author_id: u64, created_at_ms: u64) {
        sqlx::query("INSERT INTO posts (post_id, author_id, created_at_ms) VALUES (?, ?, ?)")
            .bind(to_sql(post_id))
            .bind(to_sql(author_id))
            .bind(to_sql(created_at_ms))
            .execute(self.writer())
            .await
            .unwrap();
    }

    async fn delete_post(&self, post_id: u64) {
        sqlx::query("UPDATE posts SET deleted = 1 WHERE post_id = ?")
            .bind(to_sql(post_id))
            .execute(self.writer())
            .await
            .unwrap();
    }
}

#[async_trait]
impl Fixture for PostgresStore {
    async fn user(&self, user_id: u64, country: &str, created_at_ms: u64) {
        sqlx::query("INSERT INTO users (user_id, country, created_at) VALUES ($1, $2, $3)")
            .bind(to_sql(user_id))
            .bind(country)
            .bind(to_time(created_at_ms))
            .execute(&self.pool)
            .await
            .unwrap();
    }

    async fn follow(&self, follower: u64, following: u64) {
        sqlx::query("INSERT INTO follows VALUES ($1, $2)")
            .bind(to_sql(follower))
            .bind(to_sql(following))
            .execute(&self.pool)
            .await
            .unwrap();
    }

    async fn post(&self, post_id: u64, author_id: u64, created_at_ms: u64) {
        sqlx::query("INSERT INTO posts (post_id, author_id, created_at) VALUES ($1, $2, $3)")
            .bind(to_sql(post_id))
            .bind(to_sql(author_id))
            .bind(to_time(created_at_ms))
            .execute(&self.pool)
            .await
            .unwrap();
    }

    async fn delete_post(&self, post_id: u64) {
        sqlx::query("UPDATE posts SET deleted = true WHERE post_id = $1")
            .bind(to_sql(post_id))
            .execute(&self.pool)
            .await
            .unwrap();
    }
}

async fn on_both(check: impl AsyncFn(&dyn Fixture)) {
    let data_dir = tempfile::tempdir().unwrap();
    check(&EmbeddedStore::open(data_dir.path()).await.unwrap()).await;
    if let Some(database) = TestDatabase::migrated().await {
        check(&PostgresStore::new(&database.url, 4, TIMEOUT).unwrap()).await;
    }
}

fn shown(posts: &[TimelinePost]) -> Vec<(u64, bool)> {
    posts
        .iter()
        .map(|found| (found.post.post_id, found.followed))
        .collect()
}

#[tokio::test]
async fn a_timeline_is_newest_first_and_marks_followed_posts() {
    on_both(async |store| {
        store.follow(VIEWER, 2).await;
        store.follow(VIEWER, VIEWER).await;
        let edge = NOW_MS - 72 * HOUR_MS;
        store.post(10, 2, NOW_MS).await;
        store.post(11, 2, edge).await;
        store.post(12, 2, edge - 1).await; // too old as a followee's post
        store.post(13, 3, NOW_MS).await;
        store.post(14, 3, NOW_MS - 90 * 24 * HOUR_MS).await;
        store.post(15, 3, NOW_MS - 90 * 24 * HOUR_MS - 1).await;
        store.post(16, 2, NOW_MS + 1).await;
        store.post(17, VIEWER, NOW_MS).await;
        store.post(18, 2, NOW_MS - 1).await;
        store.delete_post(18).await;
        let timeline = store.timeline(VIEWER, NOW_MS, 50).await.unwrap();
        let expected = [
            (13, false),
            (10, true),
            (11, true),
            (12, false),
            (14, false),
        ];
        assert_eq!(shown(&timeline), expected, "{}", store.name());
        assert_eq!(timeline[2].post.created_at_ms, edge);
        assert_eq!(timeline[2].post.author_id, 2);
    })
    .await;
}

#[tokio::test]
async fn newer_posts_of_others_never_displace_those_of_followees() {
    on_both(async |store| {
        store.follow(VIEWER, 2).await;
        for post in 0..6 {
            store.post(10 + post, 2, NOW_MS - HOUR_MS).await;
            store.post(20 + post, 3, NOW_MS).await;
        }
        let timeline = store.timeline(VIEWER, NOW_MS, 8).await.unwrap();
        let expected = [
            (25, false),
            (24, false),
            (15, true),
            (14, true),
            (13, true),
            (12, true),
            (11, true),
            (10, true),
        ];
        assert_eq!(shown(&timeline), expected, "{}", store.name());
        let short = store.timeline(VIEWER, NOW_MS, 2).await.unwrap();
        assert_eq!(shown(&short), [(15, true), (14, true)], "{}", store.name());
    })
    .await;
}

#[tokio::test]
async fn attributes_are_found_for_a_known_viewer_and_not_for_an_unknown_one() {
    on_both(async |store| {
        store.user(VIEWER, "NL", NOW_MS).await;
        let expected = ViewerAttributes {
            country: "NL".into(),
            language: String::new(),
            created_at_ms: NOW_MS,
        };
        let found = store.viewer_attributes(VIEWER).await.unwrap();
        assert_eq!(found, Some(expected), "{}", store.name());
        assert_eq!(store.viewer_attributes(2).await.unwrap(), None);
        assert_eq!(store.viewer_attributes(u64::MAX).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn followers_are_returned_up_to_the_limit() {
    on_both(async |store| {
        for follower in 2..7 {
            store.follow(follower, VIEWER).await;
        }
        store.follow(VIEWER, 9).await;
        let mut followers = store.followers(VIEWER, 100).await.unwrap();
        followers.sort_unstable();
        assert_eq!(followers, [2, 3, 4, 5, 6], "{}", store.name());
        assert_eq!(store.followers(VIEWER, 3).await.unwrap().len(), 3);
        store.ping().await.unwrap();
    })
    .await;
}

/// The URL of a port that no process listens on.
fn nowhere() -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    format!("postgres://nobody@127.0.0.1:{port}/nothing")
}

#[tokio::test]
async fn a_store_that_is_down_fails_retryably_and_then_opens_its_circuit() {
    let store = PostgresStore::new(&nowhere(), 1, Duration::from_millis(50)).unwrap();
    for _ in 0..4 {
        let error = store.viewer_attributes(VIEWER).await.unwrap_err();
        assert!(error.retryable, "{error}");
        assert_eq!(error.store, "postgres");
    }
    assert_eq!(store.guard().circuit(), crate::breaker::Circuit::Open);
}

#[tokio::test]
async fn a_missing_table_is_a_permanent_failure_and_a_timed_out_statement_is_retryable() {
    let Some(database) = TestDatabase::empty().await else {
        return;
    };
    let store = PostgresStore::new(&database.url, 1, TIMEOUT).unwrap();
    let error = store.viewer_attributes(VIEWER).await.unwrap_err();
    assert!(!error.retryable, "{error}");
    assert!(error.to_string().contains("run `nova migrate`"), "{error}");
    let timed_out = sqlx::raw_sql("SET statement_timeout = 10; SELECT pg_sleep(60)")
        .execute(&store.pool)
        .await
        .unwrap_err();
    assert!(
        super::Failure::from(timed_out).retryable,
        "cancelled by the server"
    );
}

#[tokio::test]
async fn a_second_migration_changes_nothing_and_a_newer_schema_is_refused() {
    let Some(database) = TestDatabase::empty().await else {
        return;
    };
    let applied = migrate::migrate(&database.url).await.unwrap();
    assert_eq!(applied.first().unwrap(), "0001_community");
    assert_eq!(migrate::migrate(&database.url).await.unwrap(), [""; 0]);
    let store = PostgresStore::new(&database.url, 1, TIMEOUT).unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', true, '', 0)";
    sqlx::raw_sql(newer).execute(&store.pool).await.unwrap();
    let refusal = migrate::migrate(&database.url).await.unwrap_err();
    let text = format!("{refusal:#}");
    assert!(text.contains("version 9999"), "{text}");
    assert!(text.contains("use the newer nova"), "{text}");
}

#[tokio::test]
async fn the_five_published_tables_are_captured_with_the_whole_old_row() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let store = PostgresStore::new(&database.url, 1, TIMEOUT).unwrap();
    let captured = "SELECT t.tablename, c.relreplident::text
        FROM pg_publication_tables t JOIN pg_class c ON c.oid = (t.schemaname || '.' || t.tablename)::regclass
        WHERE t.pubname = 'nova_pub' ORDER BY 1";
    let tables: Vec<(String, String)> = sqlx::query_as(captured)
        .fetch_all(&store.pool)
        .await
        .unwrap();
    let full = |table: &str| (table.to_owned(), "f".to_owned());
    let expected = ["comments", "follows", "likes", "posts", "users"].map(full);
    assert_eq!(tables, expected);
}
