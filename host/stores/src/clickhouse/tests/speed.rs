//! Measurement of the time that an adapter's call takes. It prints the result:
//! `cargo test -p nova-stores --lib clickhouse::tests::speed -- --ignored --nocapture`.

use super::TestDatabase;
use crate::clickhouse::PartitionRun;
use nova_model::event::{AcceptedEvent, Action};
use nova_support::clock::unix_ms;
use std::time::{Duration, Instant};
use uuid::Uuid;

const RUNS: i64 = 20;

fn batch(events: u64, now_ms: u64) -> Vec<AcceptedEvent> {
    let event = |_| {
        let post_id = rand::random_range(1..=100_000);
        AcceptedEvent {
            event_id: Uuid::new_v4(),
            event_time_ms: now_ms - rand::random_range(0..5_000),
            accepted_ms: now_ms,
            user_id: rand::random_range(1..=200_000),
            post_id,
            author_id: post_id % 5_000 + 1,
            action: Action::ALL[rand::random_range(0..Action::ALL.len())],
            dwell_ms: Some(1_000),
            device: "ios".into(),
            app_ver: "1.0.0".into(),
            ranking_id: Some(Uuid::new_v4()),
        }
    };
    (0..events).map(event).collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test]
#[ignore = "a measurement"]
async fn storing_events_is_measured() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    for size in [500, 2_000, 10_000_u64] {
        let (mut judged, mut inserted) = (Vec::new(), Vec::new());
        for number in 0..RUNS {
            let events = batch(size, unix_ms());
            let first_offset = number * 1_000_000;
            let run = PartitionRun {
                partition: i32::try_from(size).unwrap(),
                first_offset,
                last_offset: first_offset + 999_999,
            };
            let begun = Instant::now();
            let refs: Vec<&AcceptedEvent> = events.iter().collect();
            database.store.duplicates_of(run, &refs).await.unwrap();
            judged.push(begun.elapsed());
            let begun = Instant::now();
            let rows: Vec<(i64, &AcceptedEvent)> = (first_offset..).zip(refs).collect();
            let token = format!("speed:{size}:{number}");
            database
                .store
                .insert_events(run, &rows, &token)
                .await
                .unwrap();
            inserted.push(begun.elapsed());
        }
        let (judged, inserted) = (median(judged), median(inserted));
        println!("{size} events: look-up {judged:.1?}, insert {inserted:.1?} (medians)");
    }
}
