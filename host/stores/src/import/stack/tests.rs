//! Tests that import the same files into both targets and expect equal summaries, errors and
//! counters.

use super::StackTarget;
use crate::clickhouse::ClickHouseStore;
use crate::embedded::EmbeddedStore;
use crate::import::{ImportOptions, import_dir};
use crate::ports::ImportTarget;
use crate::ports::{CandidateStore, SeenAmong, SeenPosts, StoreResult};
use crate::postgres::testing::TestDatabase;
use async_trait::async_trait;
use nova_model::post::Counters;
use nova_model::time::rfc3339;
use nova_model::time::{HOUR_MS, UnixMs};
use nova_support::clock::unix_ms;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

const USERS: &str =
    "user_id,created_at,country\n1,2026-03-01T00:00:00Z,NL\n2,2026-03-01T00:00:00Z,\n";
const POSTS: &str = "post_id,author_id,created_at,view_count,kind\n\
    10,1,2026-03-02T10:30:00Z,7,answer\n11,2,2026-03-02T10:30:00+02:00,,question\n";
const FOLLOWS: &str = "follower_id,following_id,created_at\n\
    1,2,2026-03-02T00:00:00Z\n1,2,2026-03-03T00:00:00Z\n";
const COMMENTS: &str = "comment_id,post_id,user_id,created_at\n1,10,2,2026-03-03T00:00:00Z\n";
const LIKES: &str = "like_id,post_id,user_id,created_at\n\
    1,10,2,2026-03-02T00:00:00Z\n2,10,2,2026-03-02T00:00:00Z\n3,10,,2026-03-02T00:00:00Z\n";
const EVENTS: &str = "event_id,event_time,user_id,post_id,author_id,action,dwell_ms,device,app_ver\n\
    1,2026-03-03T12:00:00Z,2,10,1,view,1500,phone,1\n\
    9a4f4f43-98d7-4d7e-8d28-53e6ae1ea74d,2026-03-03T12:00:00Z,2,10,1,view,,,\n\
    2,2026-03-03T12:00:01Z,2,10,1,impression,,,\n3,2026-03-03T12:00:02Z,2,11,2,share,,,\n";
const ALL: [(&str, &str); 6] = [
    ("users.csv", USERS),
    ("posts.csv", POSTS),
    ("follows.csv", FOLLOWS),
    ("comments.csv", COMMENTS),
    ("likes.csv", LIKES),
    ("events.csv", EVENTS),
];

/// A store of seen posts that records the marks.
#[derive(Debug, Default)]
struct Marks(Mutex<Vec<(u64, u64, UnixMs)>>);

#[async_trait]
impl SeenPosts for Marks {
    fn name(&self) -> &'static str {
        "marks"
    }

    async fn version(&self, _viewer: u64) -> StoreResult<u64> {
        Ok(0)
    }

    async fn among(&self, _: u64, _: &[u64], _: UnixMs) -> StoreResult<SeenAmong> {
        Ok(SeenAmong::default())
    }

    async fn mark(&self, viewer: u64, posts: &[u64], accepted_ms: UnixMs) -> StoreResult<()> {
        let marks = posts.iter().map(|post| (viewer, *post, accepted_ms));
        self.0.lock().unwrap().extend(marks);
        Ok(())
    }

    async fn count(&self, _viewer: u64, _now_ms: UnixMs) -> StoreResult<u64> {
        Ok(0)
    }
}

/// Both targets, each with its own stores.
struct Both {
    embedded: EmbeddedStore,
    real: StackTarget,
    clickhouse: ClickHouseStore,
    clickhouse_url: reqwest::Url,
    marks: Arc<Marks>,
    _postgres: TestDatabase,
    _data_dir: tempfile::TempDir,
}

impl Both {
    async fn new() -> Option<Self> {
        let postgres = TestDatabase::migrated().await?;
        let Ok(server) = std::env::var("CLICKHOUSE_URL") else {
            assert_ne!(
                std::env::var("NOVA_REQUIRE_SERVICES").as_deref(),
                Ok("1"),
                "CLICKHOUSE_URL is not set"
            );
            eprintln!("not run against ClickHouse: CLICKHOUSE_URL is not set");
            return None;
        };
        let mut clickhouse_url = reqwest::Url::parse(&server).unwrap();
        clickhouse_url.set_path(reqwest::Url::parse(&postgres.url).unwrap().path());
        let clickhouse = ClickHouseStore::connect(clickhouse_url.as_str()).unwrap();
        clickhouse.migrate().await.unwrap();
        let marks = Arc::new(Marks::default());
        let data_dir = tempfile::tempdir().unwrap();
        Some(Self {
            embedded: EmbeddedStore::open(data_dir.path()).await.unwrap(),
            real: StackTarget::new(&postgres.url, clickhouse.clone(), marks.clone()).unwrap(),
            clickhouse,
            clickhouse_url,
            marks,
            _postgres: postgres,
            _data_dir: data_dir,
        })
    }

    /// Imports the files into both targets, asserts that the results are equal, and returns the
    /// result. All times are moved to now, because ClickHouse keeps 92 days.
    async fn import(
        &self,
        files: &[(&str, &str)],
    ) -> Result<Vec<(&'static str, u64, u64)>, String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let options = ImportOptions {
            shift_to_now: true,
            now_ms: unix_ms(),
        };
        let into = async |target: &dyn ImportTarget| {
            let done = import_dir(target, directory.path(), &options, &mut |_| {}).await;
            let summary = done.map_err(|error| error.to_string())?;
            let counts = summary.files.iter();
            Ok(counts
                .map(|file| (file.file, file.rows_new, file.rows_already_there))
                .collect())
        };
        let embedded: Result<Vec<_>, String> = into(&self.embedded).await;
        assert_eq!(into(&self.real).await, embedded);
        embedded
    }

    async fn counters(&self) -> HashMap<u64, Counters> {
        let now_ms = unix_ms();
        let embedded = self.embedded.counters(&[10, 11], now_ms).await.unwrap();
        let real = self.clickhouse.counters(&[10, 11], now_ms).await.unwrap();
        assert_eq!(real, embedded);
        for viewer in [1, 2] {
            let embedded = self.embedded.affinities(viewer, now_ms).await.unwrap();
            let real = self.clickhouse.affinities(viewer, now_ms).await.unwrap();
            assert_eq!(real, embedded, "viewer {viewer}");
        }
        let embedded = self.embedded.recent(1, now_ms, 10).await.unwrap();
        let real = self.clickhouse.recent(1, now_ms, 10).await.unwrap();
        assert_eq!(real, embedded);
        self.clickhouse.counters(&[10, 11], now_ms).await.unwrap()
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        let mut url = self.clickhouse_url.clone();
        let drop = format!("DROP DATABASE IF EXISTS {}", url.path().trim_matches('/'));
        url.set_path("/");
        // A new thread drops the database, because the test's own runtime may be the one that
        // unwinds.
        let dropped = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(reqwest::Client::new().post(url).body(drop).send())
        });
        let _ = dropped.join();
    }
}

#[tokio::test]
async fn both_targets_count_the_same_history_equally_and_a_second_import_changes_nothing() {
    let Some(both) = Both::new().await else {
        return;
    };
    let first = both.import(&ALL).await.unwrap();
    let expected = [
        ("users.csv", 2, 0),
        ("posts.csv", 2, 0),
        ("follows.csv", 1, 1),
        ("comments.csv", 1, 0),
        ("likes.csv", 3, 0),
        ("events.csv", 4, 0),
    ];
    assert_eq!(first, expected);
    let counters = both.counters().await;
    let ten = Counters {
        views: 9,
        likes: 3,
        comments: 1,
        shares: 0,
        dwell_ms_sum: 1500,
        exposures: 8,
    };
    assert_eq!(counters[&10], ten);
    let again = both.import(&ALL).await.unwrap();
    assert!(again.iter().all(|(_, new, _)| *new == 0), "{again:?}");
    assert_eq!(both.counters().await, counters);
}

#[tokio::test]
async fn imported_impressions_and_views_of_the_last_day_are_marked_as_seen() {
    let Some(both) = Both::new().await else {
        return;
    };
    both.import(&ALL).await.unwrap();
    let marks = both.marks.0.lock().unwrap();
    let seen: Vec<_> = marks
        .iter()
        .map(|(viewer, post, _)| (*viewer, *post))
        .collect();
    assert_eq!(seen, [(2, 10), (2, 10), (2, 10)]);
    assert!(marks.iter().all(|(.., at_ms)| at_ms + HOUR_MS > unix_ms()));
}

#[tokio::test]
async fn rows_that_clickhouse_got_from_a_failed_import_are_not_counted_again() {
    let Some(both) = Both::new().await else {
        return;
    };
    both.import(&ALL).await.unwrap();
    let counters = both.counters().await;
    // Simulates a failure of PostgreSQL before each commit.
    let forget = "TRUNCATE users, posts, follows, comments, likes, events_dedup";
    sqlx::raw_sql(forget)
        .execute(&both.real.pool)
        .await
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in ALL {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let options = ImportOptions {
        shift_to_now: true,
        now_ms: unix_ms(),
    };
    let summary = import_dir(&both.real, directory.path(), &options, &mut |_| {})
        .await
        .unwrap();
    assert!(summary.files.iter().all(|file| file.rows_new > 0));
    assert_eq!(both.counters().await, counters);
}

#[tokio::test]
async fn both_targets_refuse_the_same_rows_with_the_same_texts() {
    let Some(both) = Both::new().await else {
        return;
    };
    both.import(&ALL[..2]).await.unwrap();
    let likes = "like_id,post_id,user_id,created_at\n";
    let like = |row: &str| format!("{likes}1,10,2,2026-03-02T00:00:00Z\n{row}\n");
    for (file, text) in [
        ("likes.csv", like("2,10,x,2026-03-02T00:00:00Z")),
        ("likes.csv", like("2,99,2,2026-03-02T00:00:00Z")),
        ("likes.csv", like("2,10,99,2026-03-02T00:00:00Z")),
        ("likes.csv", like("1,11,2,2026-03-02T00:00:00Z")),
        (
            "likes.csv",
            like("1,10,,2026-03-02T00:00:00Z\n1,10,2,2026-03-02T00:00:00Z"),
        ),
        (
            "likes.csv",
            like("\n2,99,2,2026-03-02T00:00:00Z\n3,10,2,never"),
        ),
        ("likes.csv", like("2,10,2,2026-03-02T00:00:00Z,more")),
        (
            "posts.csv",
            "post_id,author_id,created_at\n10,2,2026-03-02T10:30:00Z\n".into(),
        ),
        (
            "posts.csv",
            "post_id,created_at\n12,2026-03-02T10:30:00Z\n".into(),
        ),
        (
            "users.csv",
            "user_id,created_at,bio\n3,2026-03-01T00:00:00Z,a\u{0}b\n".into(),
        ),
        (
            "follows.csv",
            "follower_id,following_id,created_at\n1,3,2026-03-01T00:00:00Z\n".into(),
        ),
        (
            "users.csv",
            "user_id,created_at,bio\n3,2026-03-01T00:00:00Z,\"open\n4,2026-03-01T00:00:00Z,\n"
                .into(),
        ),
        (
            "users.csv",
            "user_id,created_at,bio\n3,2026-03-01T00:00:00Z,\"a \"b\" c\"\n".into(),
        ),
        (
            "users.csv",
            "user_id,created_at,\"bio\n3,2026-03-01T00:00:00Z,\n".into(),
        ),
        (
            "users.csv",
            "user_id,created_at\r3,2026-03-01T00:00:00Z\r".into(),
        ),
        ("users.csv", String::new()),
        (
            "posts.csv",
            "post_id,author_id,created_at\n12,1,2106-03-01T00:00:00Z\n".into(),
        ),
    ] {
        let refusal = both.import(&[(file, &text)]).await.unwrap_err();
        assert!(refusal.starts_with(&format!("{file}:")), "{refusal}");
    }
    assert_eq!(both.import(&[ALL[4]]).await.unwrap(), [("likes.csv", 3, 0)]);
    let other = LIKES.replace("1,10,2", "1,11,2");
    let refusal = both.import(&[("likes.csv", &other)]).await.unwrap_err();
    assert!(refusal.contains("already in the store"), "{refusal}");
}

#[tokio::test]
async fn repeated_equal_rows_are_one_row_and_may_refer_to_an_earlier_import() {
    let Some(both) = Both::new().await else {
        return;
    };
    both.import(&ALL[..2]).await.unwrap();
    let row = "5,10,1,2026-03-03T00:00:00Z\n";
    let comments = format!("comment_id,post_id,user_id,created_at\n{row}{row}");
    let done = both.import(&[("comments.csv", &comments)]).await.unwrap();
    assert_eq!(done, [("comments.csv", 1, 1)]);
    assert_eq!(both.counters().await[&10].comments, 1);
}

#[tokio::test]
async fn an_import_into_a_store_that_is_down_fails_and_names_the_store() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://nobody@{}/nothing", unused.local_addr().unwrap());
    drop(unused);
    let clickhouse = ClickHouseStore::connect("http://127.0.0.1:9/nothing").unwrap();
    let target = StackTarget::new(&url, clickhouse, Arc::new(Marks::default())).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let users = format!("user_id,created_at\n1,{}\n", rfc3339(unix_ms()));
    std::fs::write(directory.path().join("users.csv"), users).unwrap();
    let options = ImportOptions {
        shift_to_now: false,
        now_ms: unix_ms(),
    };
    let failed = import_dir(&target, directory.path(), &options, &mut |_| {}).await;
    let text = failed.unwrap_err().to_string();
    assert!(text.starts_with("users.csv: postgres:"), "{text}");
}
