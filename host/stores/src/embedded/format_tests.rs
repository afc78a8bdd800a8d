//! A stored `nova.db`, in `tests/fixtures/formats`: a small community, events, exposures, and a
//! registry in which every kind of change was made.

use super::registry::SqliteRegistry;
use super::*;
use crate::ports::registry::Registry;
use crate::ports::{CandidateStore, ExposureStore, RelationalStore};
use nova_model::artifact::{Digest, PolicySpec, Stage};
use nova_model::audit::{AuditEntry, AuditPage, Verifier};
use nova_model::event::{AcceptedEvent, Action, event_id_key, idempotency_key};
use nova_model::post::{Counters, Post};
use nova_model::quarantine::Quarantine;
use nova_model::registry::{Experiment, RegistryState};
use nova_model::user::ViewerAttributes;
use sqlx::{Row as _, SqliteConnection};
use std::collections::BTreeMap;
use uuid::Uuid;

macro_rules! stored {
    ($name:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/formats/v1/",
            $name
        ))
    };
}

/// Time at which the file was written: 2026-11-30T15:55:54Z.
const NOW_MS: UnixMs = 1_796_054_154_000;

async fn open() -> (tempfile::TempDir, EmbeddedStore) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join(FILE_NAME),
        stored!("embedded/nova.db"),
    )
    .unwrap();
    let store = EmbeddedStore::open(directory.path()).await.unwrap();
    (directory, store)
}

#[tokio::test]
async fn a_stored_community_and_its_aggregates_are_read() {
    let (_directory, store) = open().await;
    let attributes = store.viewer_attributes(1).await.unwrap();
    let expected = ViewerAttributes {
        country: "DE".into(),
        language: "en".into(),
        created_at_ms: 1_792_594_548_000,
    };
    assert_eq!(attributes, Some(expected));
    let mut followers = store.followers(3, 10).await.unwrap();
    followers.sort_unstable();
    assert_eq!(followers, [1, 2, 4]);
    let post = Post {
        post_id: 101,
        author_id: 2,
        created_at_ms: 1_796_039_748_000,
    };
    let counters = Counters {
        views: 1,
        likes: 2,
        comments: 2,
        shares: 1,
        dwell_ms_sum: 1_200,
        exposures: 1,
    };
    let found = store.post_metrics(101, NOW_MS).await.unwrap();
    assert_eq!(found, Some((post, counters)));
    let affinities = store.affinities(1, NOW_MS).await.unwrap();
    assert_eq!(affinities.into_iter().collect::<Vec<_>>(), [(2, 5)]);
    let suggested = store.suggested_users(1, NOW_MS, 10).await.unwrap();
    assert!(
        suggested
            .iter()
            .all(|user| user.bio == format!("bio, {}", user.user_id))
    );
    let timeline = store.timeline(1, NOW_MS, 100).await.unwrap();
    assert_eq!(timeline.len(), 6);
}

#[tokio::test]
async fn stored_exposures_are_counted() {
    let (_directory, store) = open().await;
    let counts = store.variation_counts("recency").await.unwrap();
    let counts: Vec<_> = counts
        .iter()
        .map(|count| (count.variation.as_str(), count.exposures, count.viewers))
        .collect();
    assert_eq!(counts, [("fresh", 1, 1)]);
    assert_eq!(store.active_viewers(0, 10).await.unwrap(), [1, 42]);
    let day = store.daily_metrics(day_start(NOW_MS)).await.unwrap();
    assert_eq!((day.overall.rankings, day.overall.posts_served), (2, 14));
}

/// The keys are hashes, so the hash functions are a part of the format too.
#[tokio::test]
async fn a_stored_event_has_the_keys_that_it_would_get_today() {
    let (_directory, store) = open().await;
    let select = "SELECT * FROM events WHERE event_row = 4";
    let row = sqlx::query(select).fetch_one(store.reader()).await.unwrap();
    let uuid = |column| Uuid::from_slice(row.get(column)).unwrap();
    let event = AcceptedEvent {
        event_id: uuid("event_id"),
        event_time_ms: from_sql(row.get("event_time_ms")),
        accepted_ms: from_sql(row.get("accepted_ms")),
        user_id: from_sql(row.get("user_id")),
        post_id: from_sql(row.get("post_id")),
        author_id: from_sql(row.get("author_id")),
        action: Action::parse(row.get("action")).unwrap(),
        dwell_ms: row.get("dwell_ms"),
        device: row.get("device"),
        app_ver: row.get("app_ver"),
        ranking_id: Some(uuid("ranking_id")),
    };
    let expected = AcceptedEvent {
        event_id: Uuid::from_u128(0x0197_a000_0000_7000_8000_0000_0000_0001),
        event_time_ms: 1_796_054_150_250,
        accepted_ms: 1_796_054_150_319,
        user_id: 1,
        post_id: 101,
        author_id: 2,
        action: Action::View,
        dwell_ms: None,
        device: "ios".into(),
        app_ver: "1.2.3".into(),
        ranking_id: Some(Uuid::from_u128(0x01a2_2d2b_6ca8_701e_954a_d114_f9e8_8ac1)),
    };
    assert_eq!(event, expected);
    assert_eq!(
        row.get::<&[u8], _>("idempotency_key"),
        idempotency_key(&event)
    );
    assert_ne!(event_id_key(&event), idempotency_key(&event));
}

/// The same state as a host writes it to its own disk; that file's own test says what is in it.
fn state() -> RegistryState {
    let text = std::str::from_utf8(stored!("registry/state.json")).unwrap();
    let (_, json) = text.split_once('\n').unwrap();
    serde_json::from_str(json).unwrap()
}

#[tokio::test]
async fn a_stored_registry_is_read_with_its_modules() {
    let (_directory, store) = open().await;
    let registry = SqliteRegistry::open(&store).await.unwrap();
    let found = registry.load().await.unwrap();
    let newest = registry
        .audit(AuditPage::NEWEST, 1)
        .await
        .unwrap()
        .remove(0);
    assert!(newest.hash.is_some());
    let expected = RegistryState {
        head: newest.hash,
        ..state()
    };
    assert_eq!(found, expected);
    for published in &found.policies {
        assert_eq!(published.spec.digest(), published.digest);
        for stage in Stage::ALL {
            let digest = published.spec.stages.get(stage).module;
            let bytes = registry.module(digest).await.unwrap().unwrap();
            assert_eq!(Digest::from_content(&bytes), digest);
        }
    }
}

#[tokio::test]
async fn a_stored_audit_log_is_read_and_its_chain_continues() {
    let (_directory, store) = open().await;
    let registry = SqliteRegistry::open(&store).await.unwrap();
    let entries = registry.audit(AuditPage::OLDEST, 100).await.unwrap();
    let lines = std::str::from_utf8(stored!("audit/entries.jsonl")).unwrap();
    let expected: Vec<AuditEntry> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(entries, expected);
    let change = nova_model::registry::Change::SetFlag {
        name: "enable_fallback".into(),
        enabled: true,
    };
    registry.apply(&change, "ada", 21).await.unwrap();
    let mut verifier = Verifier::default();
    for entry in registry.audit(AuditPage::OLDEST, 100).await.unwrap() {
        verifier.push(&entry).unwrap();
    }
    assert_eq!(verifier.finish().unwrap().entries, 22);
}

/// The JSON texts of the registry's rows, in PostgreSQL as well.
#[tokio::test]
async fn the_texts_of_a_stored_registry_are_encoded_again_to_the_same_bytes() {
    let (_directory, store) = open().await;
    let texts = async |select: &'static str| -> Vec<String> {
        let texts = sqlx::query_scalar(select).fetch_all(store.reader());
        texts.await.unwrap()
    };
    fn assert_same<T: serde::de::DeserializeOwned + serde::Serialize>(
        texts: &[String],
        rows: usize,
    ) {
        assert_eq!(texts.len(), rows);
        for text in texts {
            let value: T = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&value).unwrap(), *text);
        }
    }
    assert_same::<PolicySpec>(&texts("SELECT spec FROM policies").await, 7);
    assert_same::<Experiment>(&texts("SELECT body FROM experiments").await, 1);
    let rules = texts("SELECT rule FROM cohorts").await;
    assert_same::<nova_model::experiments::cohort::Rule>(&rules, 1);
    assert_same::<Quarantine>(&texts("SELECT body FROM policy_quarantine").await, 1);
}

#[tokio::test]
async fn a_stored_database_has_the_tables_of_a_new_one() {
    let (_old, old) = open().await;
    let directory = tempfile::tempdir().unwrap();
    let new = EmbeddedStore::open(directory.path()).await.unwrap();
    let mut schemas = Vec::new();
    for store in [&old, &new] {
        SqliteRegistry::open(store).await.unwrap();
        schemas.push(schema_of(&mut store.writer().acquire().await.unwrap()).await);
    }
    assert_eq!(schemas[0], schemas[1]);
}

/// Returns the tables, indices and triggers of a database, without comments and white space. A
/// file that a released program wrote must have those that a new file gets: a change needs a
/// migration and a new schema version.
pub async fn schema_of(connection: &mut SqliteConnection) -> BTreeMap<String, String> {
    let rows = sqlx::query_as("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL");
    let rows: Vec<(String, String)> = rows.fetch_all(connection).await.unwrap();
    let plain = |sql: String| {
        let lines = sql
            .lines()
            .map(|line| line.split("--").next().unwrap_or(""));
        lines.flat_map(str::split_whitespace).collect::<String>()
    };
    rows.into_iter()
        .map(|(name, sql)| (name, plain(sql)))
        .collect()
}
