//! Change data capture from PostgreSQL through Debezium and Kafka into ClickHouse, and the
//! cached feeds that a change invalidates.

use crate::harness::{Community, Host, eventually, post_ids};
use crate::services::Stack;
use nova::cdc::consumer::{self, Capture};
use nova::cdc::invalidation::Invalidator;
use nova_stores::clickhouse::ClickHouseStore;
use nova_stores::embedded::cache::ProcessCache;
use nova_stores::kafka::{KafkaSettings, Producer, Reader};
use nova_stores::ports::{FeedCache, ValueCache};
use nova_stores::postgres::PostgresStore;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};

const CDC_WITHIN: Duration = Duration::from_secs(90);

/// A connector that belongs to one test. Dropping it removes the connector and its replication
/// slot.
struct Connector {
    stack: Stack,
    name: String,
    connect: String,
}

impl Connector {
    /// Deploys a connector. Returns `None` if there is no Kafka Connect.
    fn deployed(stack: Stack) -> Option<Self> {
        let Ok(connect) = std::env::var("KAFKA_CONNECT_URL") else {
            let required = std::env::var("NOVA_REQUIRE_SERVICES").is_ok_and(|value| value == "1");
            assert!(
                !required,
                "KAFKA_CONNECT_URL is not set, but NOVA_REQUIRE_SERVICES=1 requires it"
            );
            eprintln!("skipped the test with Debezium, because KAFKA_CONNECT_URL is not set");
            return None;
        };
        let name = stack.kafka_prefix.trim_end_matches('.').to_owned();
        let connector = Self {
            stack,
            name,
            connect,
        };
        connector.deploy(&[]);
        Some(connector)
    }

    fn deploy(&self, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/debezium/deploy");
        let output = Command::new(script)
            .args(arguments)
            .envs(self.stack.variables())
            .env("KAFKA_CONNECT_URL", &self.connect)
            .env("NOVA_CONNECTOR", &self.name)
            .env("NOVA_SLOT", &self.name)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    fn validate(&self, patience: &str) -> (bool, Value) {
        let output = self
            .stack
            .nova()
            .args([
                "cdc",
                "validate",
                "--json",
                "--patience",
                patience,
                "--slot",
            ])
            .arg(&self.name)
            .output()
            .unwrap();
        let report = serde_json::from_slice(&output.stdout);
        let report = report.unwrap_or_else(|_| {
            panic!("{}", String::from_utf8_lossy(&output.stderr));
        });
        (output.status.success(), report)
    }

    async fn remove(&self) {
        let client = reqwest::Url::parse(&self.connect).unwrap();
        let url = client.join(&format!("/connectors/{}", self.name)).unwrap();
        let removed = reqwest::Client::new().delete(url).send().await.unwrap();
        assert!(removed.status().is_success(), "{}", removed.status());
    }

    async fn rows(&self, query: &str) -> Vec<Value> {
        self.stack.clickhouse(query).await
    }
}

impl Drop for Connector {
    /// Removes the connector and its slot. A slot left behind would keep PostgreSQL from ever
    /// removing its write-ahead log or dropping the database.
    fn drop(&mut self) {
        let client = reqwest::Url::parse(&self.connect).unwrap();
        let url = client.join(&format!("/connectors/{}", self.name)).unwrap();
        let (postgres, name) = (self.stack.postgres_url.clone(), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let _ = reqwest::Client::new().delete(url).send().await;
                drop_slot(&postgres, &name).await;
            });
        });
        let _ = dropped.join();
    }
}

/// Drops a replication slot. Retries, because the slot is busy until the connector releases it.
async fn drop_slot(postgres: &str, name: &str) {
    use sqlx::Connection as _;
    let mut connection = sqlx::PgConnection::connect(postgres).await.unwrap();
    for _ in 0..50 {
        let dropped = sqlx::query("SELECT pg_drop_replication_slot($1)")
            .bind(name)
            .execute(&mut connection)
            .await;
        if dropped.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A running CDC consumer, with its cache and the ids of the deleted posts that it reported.
struct Consumer {
    cache: ProcessCache,
    tombstones: Arc<Mutex<Vec<u64>>>,
    _member: DropGuard,
}

fn consume(stack: &Stack) -> Consumer {
    let settings = KafkaSettings {
        prefix: stack.kafka_prefix.clone(),
        ..KafkaSettings::new(&stack.kafka_brokers)
    };
    let producer = Producer::start(&settings).unwrap();
    let store = ClickHouseStore::connect(&stack.clickhouse_url).unwrap();
    let cache = ProcessCache::new(1 << 20);
    let tombstones = Arc::new(Mutex::new(Vec::new()));
    let grave = tombstones.clone();
    let postgres = PostgresStore::new(&stack.postgres_url, 2, Duration::from_secs(2)).unwrap();
    let invalidator = Invalidator {
        relational: Arc::new(postgres),
        cache: Arc::new(cache.clone()),
        values: Arc::new(cache.clone()),
        on_tombstones: Arc::new(move |tombstones| {
            let deleted = tombstones.iter().filter(|tombstone| tombstone.deleted);
            grave
                .lock()
                .unwrap()
                .extend(deleted.map(|tombstone| tombstone.post_id));
        }),
    };
    let stop = CancellationToken::new();
    let capture = Capture::new(store, invalidator, &settings);
    let subscription = consumer::subscription();
    Reader::start(&settings, &producer, subscription, capture, stop.clone()).unwrap();
    Consumer {
        cache,
        tombstones,
        _member: stop.drop_guard(),
    }
}

const COMMUNITY: &str = "
INSERT INTO users (user_id, username, bio, created_at) SELECT id, 'user ' || id, repeat('é|', id::int), now() - id * interval '7 hours' FROM generate_series(1, 40) id;
INSERT INTO posts (post_id, author_id, created_at) SELECT id, id % 40 + 1, now() - id * interval '3 hours' FROM generate_series(1, 200) id;
INSERT INTO follows (follower_id, following_id, created_at) SELECT f, t, now() - f * interval '1 day' FROM generate_series(1, 20) f, generate_series(21, 30) t;
INSERT INTO comments (comment_id, post_id, user_id, created_at) SELECT id, id % 200 + 1, id % 40 + 1, now() FROM generate_series(1, 300) id;
INSERT INTO likes (like_id, post_id, user_id, created_at) SELECT id, id % 200 + 1, CASE WHEN id % 3 > 0 THEN id % 40 + 1 END, now() FROM generate_series(1, 300) id;";

/// SQL with every kind of change, with repeated changes of one row, in one transaction and in
/// several.
const CHANGES: &str = "
UPDATE posts SET deleted = true WHERE post_id % 10 = 1;
DELETE FROM posts WHERE post_id % 10 = 2;
UPDATE posts SET author_id = author_id % 40 + 1 WHERE post_id % 10 = 3;
UPDATE posts SET created_at = created_at - interval '40 days' WHERE post_id % 10 = 4;
UPDATE posts SET post_id = post_id + 10000 WHERE post_id % 10 = 5;
BEGIN; DELETE FROM follows WHERE follower_id = 1; INSERT INTO follows SELECT 1, t, now() FROM generate_series(31, 35) t;
       DELETE FROM follows WHERE follower_id = 1 AND following_id = 31; INSERT INTO follows VALUES (1, 31, now()); COMMIT;
DELETE FROM likes WHERE like_id % 7 = 0;
INSERT INTO likes VALUES (7, 1, NULL, now());
UPDATE users SET bio = (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 3000) i) WHERE user_id = 3;
UPDATE users SET country = 'NL' WHERE user_id IN (3, 4);
DELETE FROM users WHERE user_id = 40;";

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_follows_every_kind_of_change_and_validation_detects_a_difference() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    stack.postgres(COMMUNITY).await;
    let Some(connector) = Connector::deployed(stack) else {
        return;
    };
    let _consumer = consume(&connector.stack);
    let captured = |validated: (bool, Value)| {
        let (passes, report) = validated;
        let states: Vec<_> = report["tables"]
            .as_array()
            .unwrap()
            .iter()
            .map(|table| table["state"].clone())
            .collect();
        (passes, states == vec![json!("equal"); 5], report)
    };
    let (passes, equal, report) = captured(connector.validate("90s"));
    assert!(passes && equal, "after the snapshot: {report}");
    connector.stack.postgres(CHANGES).await;
    let (passes, equal, report) = captured(connector.validate("90s"));
    assert!(passes && equal, "after the changes: {report}");
    let moved = connector
        .rows("SELECT post_id FROM posts_by_id FINAL WHERE is_deleted = 0 AND post_id = 3")
        .await;
    assert_eq!(
        moved.len(),
        1,
        "a post that changed its author is still there"
    );
    connector
        .rows("ALTER TABLE likes DELETE WHERE like_id = 1 SETTINGS mutations_sync = 2")
        .await;
    let (passes, equal, report) = captured(connector.validate("1s"));
    assert!(!passes && !equal, "{report}");
    let likes = &report["tables"][4];
    assert_eq!(
        (&likes["table"], &likes["state"]),
        (&json!("likes"), &json!("different"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_and_follows_invalidate_the_feeds_they_change() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    stack
        .postgres("INSERT INTO follows VALUES (1, 9, now()), (2, 9, now())")
        .await;
    let Some(connector) = Connector::deployed(stack) else {
        return;
    };
    let consumer = consume(&connector.stack);
    eventually(CDC_WITHIN, "the snapshot", || async {
        connector
            .rows("SELECT follower_id FROM follows FINAL")
            .await
            .len()
            == 2
    })
    .await;
    let epoch = |viewer: u64| consumer.cache.epoch(viewer);
    let before = (
        epoch(1).await.unwrap(),
        epoch(2).await.unwrap(),
        epoch(3).await.unwrap(),
    );
    let suggestions = nova::discover::suggested::key(3);
    consumer
        .cache
        .put(&suggestions, vec![1], Duration::from_secs(600))
        .await
        .unwrap();
    connector
        .stack
        .postgres("INSERT INTO posts (post_id, author_id) VALUES (77, 9)")
        .await;
    eventually(CDC_WITHIN, "both followers invalidated", || async {
        epoch(1).await.unwrap() != before.0 && epoch(2).await.unwrap() != before.1
    })
    .await;
    assert_eq!(epoch(3).await.unwrap(), before.2, "other feeds stay cached");
    connector
        .stack
        .postgres("INSERT INTO follows VALUES (3, 9, now()); UPDATE posts SET deleted = true WHERE post_id = 77")
        .await;
    eventually(CDC_WITHIN, "the new follower invalidated", || async {
        epoch(3).await.unwrap() != before.2
            && consumer.cache.get(&suggestions).await.unwrap().is_none()
    })
    .await;
    eventually(CDC_WITHIN, "the deletion is reported", || async {
        *consumer.tombstones.lock().unwrap() == [77]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_post_reaches_a_followers_feed_and_a_deleted_one_leaves_every_page_of_every_host() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let Some(connector) = Connector::deployed(stack) else {
        return;
    };
    const SECRET: &str = "a secret that both hosts of this test share";
    let start = |community: Option<Community>| {
        let setup = Host::setup()
            .stack(&connector.stack)
            .variable("NOVA_RATE_LIMIT", "off")
            .variable("NOVA_JWT_SECRET", SECRET);
        match community {
            Some(community) => setup.community(community).start(),
            None => setup.start(),
        }
    };
    let (one, two) = (start(Some(Community::small())), start(None));
    let token = one.token_signed_with(SECRET, 7);
    let first = one.get(&token, "/api/v1/feed?limit=20").await.ok(200);
    // The post to delete is on the second page, as the second host serves it.
    let next = format!(
        "/api/v1/feed?limit=20&cursor={}",
        first["cursor"].as_str().unwrap()
    );
    let second = two.get(&token, &next).await.ok(200);
    let doomed = post_ids(&second)[3];
    connector
        .stack
        .postgres(&format!("DELETE FROM posts WHERE post_id = {doomed}"))
        .await;
    for host in [&one, &two] {
        eventually(CDC_WITHIN, "the deleted post is gone", async || {
            let page = host.get(&token, &next).await.ok(200);
            assert_eq!(page["ranking_id"], first["ranking_id"]);
            !post_ids(&page).contains(&doomed)
        })
        .await;
    }
    // Viewer 7 follows 8, 9 and 10.
    connector
        .stack
        .postgres("INSERT INTO posts (post_id, author_id) VALUES (100001, 9)")
        .await;
    for host in [&one, &two] {
        eventually(CDC_WITHIN, "the new post is in the feed", async || {
            let feed = host.get(&token, "/api/v1/feed?limit=100").await.ok(200);
            post_ids(&feed).contains(&100_001)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_whose_slot_is_gone_takes_a_new_snapshot() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    stack.postgres(COMMUNITY).await;
    let Some(connector) = Connector::deployed(stack) else {
        return;
    };
    let _consumer = consume(&connector.stack);
    let (passes, report) = connector.validate("90s");
    assert!(passes, "after the first snapshot: {report}");
    // Kafka Connect keeps the offsets of a removed connector.
    connector.remove().await;
    drop_slot(&connector.stack.postgres_url, &connector.name).await;
    connector
        .stack
        .postgres("UPDATE users SET country = 'NL'; INSERT INTO follows VALUES (40, 1, now());")
        .await;
    connector.deploy(&[]);
    let (passes, report) = connector.validate("90s");
    assert!(passes, "after the second snapshot: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_resumes_at_its_position_when_its_database_returns() {
    let Some(stack) = Stack::alone().await else {
        return;
    };
    let Some(connector) = Connector::deployed(stack) else {
        return;
    };
    let _consumer = consume(&connector.stack);
    connector.stack.service("kill", "postgres");
    connector.stack.service("start", "postgres");
    connector.stack.postgres(COMMUNITY).await;
    connector.deploy(&[]);
    let (passes, report) = connector.validate("90s");
    assert!(passes, "{report}");
    assert_eq!(report["tables"][0]["clickhouse_rows"], 40);
}
