//! Throughput of accepted events from the spool into the broker, compared with librdkafka's own
//! producer with the same messages, settings and broker.
//!
//! Run it with `KAFKA_BROKERS=… cargo bench --bench drain`.

use nova::events::drain::{BROKER_BATCH_EVENTS, Drain};
use nova_model::event::{AcceptedEvent, Action};
use nova_stores::kafka::message;
use nova_stores::kafka::{KafkaSettings, KafkaSink, Producer, Topic, topics};
use nova_stores::spool::Spool;
use nova_support::clock::unix_ms;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const EVENTS: u64 = 200_000;
const ROUNDS: usize = 3;

fn events() -> Vec<AcceptedEvent> {
    let now_ms = unix_ms();
    (1..=EVENTS)
        .map(|n| AcceptedEvent {
            event_id: Uuid::now_v7(),
            event_time_ms: now_ms,
            accepted_ms: now_ms,
            user_id: n % 5_000 + 1,
            post_id: n,
            author_id: n % 900 + 1,
            action: Action::View,
            dwell_ms: Some(1_200),
            device: "ios".to_owned(),
            app_ver: "4.12.0".to_owned(),
            ranking_id: Some(Uuid::now_v7()),
        })
        .collect()
}

fn rate(took: Duration) -> f64 {
    EVENTS as f64 / took.as_secs_f64()
}

/// Measures librdkafka's producer. The messages are made beforehand, so only the producer is
/// measured.
fn bare(settings: &KafkaSettings, events: &[AcceptedEvent]) -> anyhow::Result<f64> {
    let messages: Vec<_> = events.iter().map(message::event).collect();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .set("partitioner", "murmur2_random")
        .set("compression.type", "lz4")
        .create()?;
    let topic = settings.topic(Topic::Events);
    // Opens connections and fetches metadata first, because the other producer has done so too.
    producer
        .send(BaseRecord::<(), [u8]>::to(&topic).payload(b"{}"))
        .map_err(|(error, _)| error)?;
    producer.flush(Duration::from_secs(10))?;
    let begun = Instant::now();
    for message in &messages {
        let key = message.key.clone().unwrap_or_default();
        let mut record = BaseRecord::to(&topic).key(&key).payload(&message.payload);
        while let Err((error, back)) = producer.send(record) {
            if !matches!(
                error,
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)
            ) {
                return Err(error.into());
            }
            record = back;
            producer.poll(Duration::from_millis(1));
        }
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(rate(begun.elapsed()))
}

async fn drained(producer: &Producer, events: &[AcceptedEvent]) -> anyhow::Result<f64> {
    let directory = tempfile::tempdir()?;
    let spool = Spool::open_shared(directory.path(), 1 << 30).await?;
    for batch in events.chunks(5_000) {
        spool.append(batch.to_vec()).await?;
    }
    let drain = Drain {
        spool: spool.clone(),
        sink: Arc::new(KafkaSink::new(producer.clone())),
        counted: None,
        batch_events: BROKER_BATCH_EVENTS,
    };
    let stop = CancellationToken::new();
    // The drain ends when the spool is empty, because `stop` is set.
    stop.cancel();
    let begun = Instant::now();
    drain.run(stop, Duration::from_secs(60)).await;
    anyhow::ensure!(spool.pending() == 0, "events stayed in the spool");
    Ok(rate(begun.elapsed()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Ok(brokers) = std::env::var("KAFKA_BROKERS") else {
        println!("not run: KAFKA_BROKERS not set");
        return Ok(());
    };
    let settings = KafkaSettings {
        prefix: format!("bench-{}.", Uuid::new_v4().simple()),
        ..KafkaSettings::new(brokers)
    };
    topics::create(&settings).await?;
    let producer = Producer::start(&settings)?;
    for round in 1..=ROUNDS {
        let events = events();
        let bare = tokio::task::block_in_place(|| bare(&settings, &events))?;
        let drained = drained(&producer, &events).await?;
        println!(
            "round {round}: librdkafka alone {bare:.0} events/s, spool to broker {drained:.0} events/s ({:.0} %)",
            100.0 * drained / bare
        );
    }
    Ok(())
}
