//! Tests that a batch counts once, in the raw table and in every aggregate, regardless of how
//! often it was stored before and how earlier attempts failed.

use super::TestDatabase;
use super::conformance::store_run;
use crate::clickhouse::{ImportedEvent, PartitionRun};
use nova_model::event::{AcceptedEvent, Action};
use nova_support::clock::unix_ms;
use uuid::Uuid;

/// Number of raw rows, then the number of likes in each aggregate.
const LEDGER: [&str; 5] = [
    "SELECT count() FROM events",
    "SELECT sum(likes) FROM post_metrics_1h",
    "SELECT sum(likes) FROM trending_1h",
    "SELECT sum(likes) FROM user_author_90d",
    "SELECT count() FROM event_ids",
];

fn likes(count: u64) -> Vec<AcceptedEvent> {
    let now_ms = unix_ms();
    let like = |number: u64| AcceptedEvent {
        event_id: Uuid::from_u128(number.into()),
        event_time_ms: now_ms - number * 60_000,
        accepted_ms: now_ms,
        user_id: number % 7 + 1,
        post_id: number,
        author_id: number % 5 + 1,
        action: Action::Like,
        dwell_ms: None,
        device: "ios".into(),
        app_ver: "1.0.0".into(),
        ranking_id: None,
    };
    (1..=count).map(like).collect()
}

async fn ledger(database: &TestDatabase) -> [u64; 5] {
    let mut counts = [0; 5];
    for (count, query) in counts.iter_mut().zip(LEDGER) {
        *count = database.number(query).await;
    }
    counts
}

#[tokio::test]
async fn a_repeated_batch_counts_once_in_the_raw_table_and_in_every_aggregate() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let events = likes(500);
    let run = PartitionRun {
        partition: 0,
        first_offset: 0,
        last_offset: 499,
    };
    let rows: Vec<(i64, &AcceptedEvent)> = (0..).zip(&events).collect();
    for _ in 0..3 {
        let insert = database.store.insert_events(run, &rows, "events:0:0-499");
        insert.await.unwrap();
    }
    assert_eq!(ledger(&database).await, [500; 5]);
}

#[tokio::test]
async fn a_batch_that_one_view_refused_is_complete_after_a_retry() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let refuse = "CREATE MATERIALIZED VIEW refuses TO imported_rows AS \
                  SELECT toString(throwIf(post_id = 7)) AS import_id FROM events";
    database.execute(refuse).await;
    let events = likes(500);
    let run = PartitionRun {
        partition: 0,
        first_offset: 0,
        last_offset: 499,
    };
    let rows: Vec<(i64, &AcceptedEvent)> = (0..).zip(&events).collect();
    let insert = async || {
        let insert = database.store.insert_events(run, &rows, "events:0:0-499");
        insert.await
    };
    assert!(insert().await.is_err());
    database.execute("DROP VIEW refuses").await;
    insert().await.unwrap();
    insert().await.unwrap();
    assert_eq!(ledger(&database).await, [500; 5]);
}

#[tokio::test]
async fn repeats_are_recognised_by_key_and_by_event_id_but_not_by_the_runs_own_rows() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let store = &database.store;
    let events = likes(5_000);
    assert_eq!(store_run(store, 0, &events, 2).await, 5_000);
    // The same messages again, as when the spool missed the broker's acknowledgement.
    assert_eq!(store_run(store, 5_000, &events, 1).await, 0);

    let mut again = events.get(10).unwrap().clone();
    again.event_id = Uuid::new_v4();
    again.event_time_ms = again.event_time_ms / 1000 * 1000 + (again.event_time_ms + 500) % 1000;
    let mut same_id = events.get(11).unwrap().clone();
    same_id.event_time_ms -= 10 * 60 * 60_000;
    let mut other_user = same_id.clone();
    other_user.user_id += 100;
    let mut refused_id = other_user.clone();
    refused_id.event_id = again.event_id;
    refused_id.user_id = again.user_id;
    // An event id that occurred only in a repeat is still free.
    let batch = [again, same_id, other_user, refused_id];
    assert_eq!(store_run(store, 10_000, &batch, 2).await, 2);
    assert_eq!(database.number("SELECT count() FROM events").await, 5_002);
}

fn history(count: u64) -> Vec<ImportedEvent> {
    let imported = |event: AcceptedEvent| ImportedEvent {
        import_id: format!("event:{}", event.event_id),
        event,
        times: 1,
    };
    likes(count).into_iter().map(imported).collect()
}

#[tokio::test]
async fn history_that_one_view_refused_is_complete_after_the_next_import() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let refuse = "CREATE MATERIALIZED VIEW refuses TO post_metrics_1h AS \
                  SELECT post_id, throwIf(post_id = 7) AS views FROM events";
    database.execute(refuse).await;
    let events = history(500);
    assert!(database.store.insert_imported(&events).await.is_err());
    let known = "SELECT count() FROM imported_rows FINAL";
    assert_eq!(database.number(known).await, 0);
    database.execute("DROP VIEW refuses").await;
    for _ in 0..2 {
        database.store.insert_imported(&events).await.unwrap();
        assert_eq!(ledger(&database).await, [500; 5]);
        assert_eq!(database.number(known).await, 500);
    }
}

#[tokio::test]
async fn history_that_was_stored_without_its_ids_is_not_counted_again() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let events = history(500);
    database.store.insert_imported(&events).await.unwrap();
    database.execute("TRUNCATE TABLE imported_rows").await;
    // One event of the same chunk was sent in the meantime; that is no reason to store the others
    // again.
    let sent = "INSERT INTO event_ids SELECT user_id, event_id, event_time, 0, 1 FROM events WHERE post_id = 9";
    database.execute(sent).await;
    database.store.insert_imported(&events).await.unwrap();
    let mut counted = [500; 5];
    counted[4] += 1;
    assert_eq!(ledger(&database).await, counted);
    assert_eq!(
        database.number("SELECT count() FROM imported_rows").await,
        500
    );
}
