//! The path of events from the broker into ClickHouse. Each event is stored once in the raw
//! table and counted once in every aggregate.

use super::kafka::event;
use crate::harness::{self, Community, Host, eventually};
use crate::services::Stack;
use nova::events::consumer::{self, Judge};
use nova::events::drain::{BROKER_BATCH_EVENTS, Drain};
use nova::experiments::served::{self, ServedRecorder};
use nova_model::event::AcceptedEvent;
use nova_model::exposure::{Exposure, VariationCount};
use nova_stores::clickhouse::ClickHouseStore;
use nova_stores::kafka::exposures::KafkaExposures;
use nova_stores::kafka::message::Undecodable;
use nova_stores::kafka::reader::BatchHandler;
use nova_stores::kafka::{Batch, KafkaSettings, KafkaSink, Producer, Reader, Subscription};
use nova_stores::ports::{EventSink, ExposureStore, StoreError, StoreResult};
use nova_stores::spool::Spool;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

const COUNTED_WITHIN: Duration = Duration::from_secs(60);

/// The broker and the ClickHouse database of one test.
struct Line {
    stack: Stack,
    settings: KafkaSettings,
    producer: Producer,
    store: ClickHouseStore,
}

impl Line {
    async fn open() -> Option<Self> {
        let stack = Stack::migrated().await?;
        let settings = KafkaSettings {
            prefix: stack.kafka_prefix.clone(),
            ..KafkaSettings::new(&stack.kafka_brokers)
        };
        Some(Self {
            producer: Producer::start(&settings).unwrap(),
            store: ClickHouseStore::connect(&stack.clickhouse_url).unwrap(),
            settings,
            stack,
        })
    }

    fn judge(&self) -> Judge {
        Judge::new(self.store.clone(), Arc::new(|_| {}))
    }

    /// Starts a member of the consumer group. It stops when the guard is dropped.
    fn read<H: BatchHandler>(&self, subscription: Subscription, handler: H) -> DropGuard {
        let stop = CancellationToken::new();
        Reader::start(
            &self.settings,
            &self.producer,
            subscription,
            handler,
            stop.clone(),
        )
        .unwrap();
        stop.drop_guard()
    }

    async fn send(&self, events: &[AcceptedEvent]) {
        let sink = KafkaSink::new(self.producer.clone());
        sink.write(events, 1).await.unwrap();
    }

    /// Numbers of raw rows, events in the post counters, views in affinities, and event ids.
    /// They must agree.
    async fn counts(&self) -> Value {
        let rows = self
            .stack
            .clickhouse(
                "SELECT toUInt32((SELECT count() FROM events)) AS raw, toUInt32((SELECT sum(views) FROM post_metrics_1h)) AS counted, \
                 toUInt32((SELECT sum(views) FROM user_author_90d)) AS affinity, toUInt32((SELECT count() FROM event_ids)) AS ids",
            )
            .await;
        rows[0].clone()
    }

    async fn until_counted(&self, events: u32) {
        let all = json!({"raw": events, "counted": events, "affinity": events, "ids": events});
        eventually(COUNTED_WITHIN, "everything counted once", || async {
            self.counts().await == all
        })
        .await;
        // Wait, so that an event stored or counted twice would show.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(self.counts().await, all);
    }
}

fn views(posts: std::ops::Range<u64>) -> Vec<AcceptedEvent> {
    posts.map(|post| event(post % 31 + 1, post)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_from_the_spool_are_counted_once_even_if_they_are_sent_repeatedly() {
    let Some(line) = Line::open().await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open_shared(directory.path(), 1 << 28).await.unwrap();
    let events = views(1..2_001);
    for batch in events.chunks(100) {
        spool.append(batch.to_vec()).await.unwrap();
    }
    let drain = Drain {
        spool: spool.clone(),
        sink: Arc::new(KafkaSink::new(line.producer.clone())),
        counted: None,
        batch_events: BROKER_BATCH_EVENTS,
    };
    let stop = CancellationToken::new();
    stop.cancel();
    drain.run(stop, Duration::from_secs(20)).await;
    assert_eq!(spool.pending(), 0);
    let _member = line.read(consumer::subscription(), line.judge());
    line.send(&events[..500]).await;
    line.until_counted(2_000).await;
    line.send(&events[1_000..]).await;
    let same_second = AcceptedEvent {
        event_id: Uuid::now_v7(),
        ..events[0].clone()
    };
    let same_id = AcceptedEvent {
        event_time_ms: events[1].event_time_ms - 3_600_000,
        ..events[1].clone()
    };
    line.send(&[same_second, same_id, event(1, 9_000)]).await;
    line.until_counted(2_001).await;
}

/// A handler that stores each batch and then fails, as if the process had died before the
/// offsets were committed.
struct DiesAfterInsert {
    judge: Judge,
    stored: Arc<AtomicUsize>,
}

impl BatchHandler for DiesAfterInsert {
    type Item = AcceptedEvent;

    fn decode(
        &self,
        topic: &str,
        payload: Option<&[u8]>,
    ) -> Result<Option<AcceptedEvent>, Undecodable> {
        self.judge.decode(topic, payload)
    }

    async fn store(&self, batches: &[Batch<AcceptedEvent>]) -> StoreResult<()> {
        self.judge.store(batches).await?;
        self.stored.fetch_add(1, Ordering::Relaxed);
        Err(StoreError {
            store: "test",
            query: "die",
            retryable: true,
            source: anyhow::anyhow!("dead"),
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_stored_but_not_committed_counts_once() {
    let Some(line) = Line::open().await else {
        return;
    };
    line.send(&views(1..601)).await;
    let stored = Arc::new(AtomicUsize::new(0));
    let dying = DiesAfterInsert {
        judge: line.judge(),
        stored: stored.clone(),
    };
    let member = line.read(consumer::subscription(), dying);
    eventually(COUNTED_WITHIN, "two attempts", || async {
        stored.load(Ordering::Relaxed) >= 2
    })
    .await;
    drop(member);
    line.send(&views(601..701)).await;
    let _member = line.read(consumer::subscription(), line.judge());
    line.until_counted(700).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_reached_the_raw_table_but_not_the_aggregates_is_repaired() {
    let Some(line) = Line::open().await else {
        return;
    };
    // One of the views fails after the raw rows are written.
    line.stack
        .clickhouse("CREATE MATERIALIZED VIEW failing ENGINE = Null AS SELECT throwIf(user_id > 0) AS thrown FROM events")
        .await;
    line.send(&views(1..301)).await;
    let _member = line.read(consumer::subscription(), line.judge());
    eventually(COUNTED_WITHIN, "raw rows without aggregates", || async {
        let counts = line.counts().await;
        counts["raw"].as_u64() > counts["counted"].as_u64()
    })
    .await;
    line.stack.clickhouse("DROP VIEW failing").await;
    line.until_counted(300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exposures_pass_through_the_broker_and_a_repeated_one_counts_once() {
    let Some(line) = Line::open().await else {
        return;
    };
    let exposures = KafkaExposures::new(line.producer.clone(), Arc::new(line.store.clone()));
    let exposure = |user_id: u64| Exposure {
        ranking_id: Uuid::from_u128(u128::from(user_id)),
        request_id: "r".to_owned(),
        user_id,
        served_at_ms: nova_support::clock::unix_ms(),
        served_by: "policy".to_owned(),
        policy: "baseline@1.0.0".to_owned(),
        effective_digest: "d".to_owned(),
        experiment: Some("e".to_owned()),
        variation: Some("v".to_owned()),
        posts: vec![(1, "followees".into())],
        degraded: Vec::new(),
    };
    let batch = [exposure(1), exposure(2)];
    exposures.record(&batch).await.unwrap();
    exposures.record(&batch).await.unwrap();
    let recorder = ServedRecorder::new(Arc::new(line.store.clone()));
    let _member = line.read(served::subscription(), recorder);
    let both = [VariationCount {
        variation: "v".to_owned(),
        exposures: 2,
        viewers: 2,
    }];
    let seen = AtomicBool::new(false);
    eventually(COUNTED_WITHIN, "two exposures", || async {
        let counts = exposures.variation_counts("e").await.unwrap();
        seen.fetch_or(counts == both, Ordering::Relaxed);
        seen.load(Ordering::Relaxed)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_another_host_accepted_is_reported_as_a_duplicate() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let one = Host::setup()
        .stack(&stack)
        .community(Community::small())
        .start();
    let other = Host::setup().stack(&stack).start();
    let batch = [
        harness::event(3, 3, "view", 60),
        harness::event(4, 3, "like", 60),
    ];
    for (host, deduped) in [(&one, 0), (&other, 2), (&one, 2)] {
        let answer = host.send_events(7, &batch).await.ok(202);
        assert_eq!(answer["deduped"], deduped, "{answer}");
    }
}
