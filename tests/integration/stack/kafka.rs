//! Topics, the producer and the batch reader on a real broker, with an in-memory store for the
//! tests.

use crate::services::{Servers, delete_topics};
use nova_model::event::{AcceptedEvent, Action};
use nova_stores::kafka::message::{Undecodable, decode_event};
use nova_stores::kafka::producer::Outgoing;
use nova_stores::kafka::reader::BatchHandler;
use nova_stores::kafka::{
    Batch, KafkaSettings, KafkaSink, Producer, Reader, Subscription, Topic, topics,
};
use nova_stores::ports::{EventSink, StoreError, StoreResult};
use nova_support::clock::unix_ms;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Headers;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Topics that belong to one test. They are deleted on drop.
struct Topics {
    settings: KafkaSettings,
    producer: Producer,
}

impl Drop for Topics {
    fn drop(&mut self) {
        let settings = self.settings.clone();
        let deleting = delete_topics(&settings.brokers, &settings.prefix);
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(deleting));
    }
}

async fn topics() -> Option<Topics> {
    let servers = Servers::from_environment()?;
    let settings = KafkaSettings {
        prefix: format!("test-{}.", Uuid::new_v4().simple()),
        ..KafkaSettings::new(servers.kafka)
    };
    topics::create(&settings).await.unwrap();
    let producer = Producer::start(&settings).unwrap();
    Some(Topics { settings, producer })
}

pub fn event(user_id: u64, post_id: u64) -> AcceptedEvent {
    let now_ms = unix_ms();
    AcceptedEvent {
        event_id: Uuid::now_v7(),
        event_time_ms: now_ms,
        accepted_ms: now_ms,
        user_id,
        post_id,
        author_id: 2,
        action: Action::View,
        dwell_ms: None,
        device: "ios".to_owned(),
        app_ver: "1.0.0".to_owned(),
        ranking_id: None,
    }
}

fn events(posts: std::ops::Range<u64>) -> Vec<AcceptedEvent> {
    posts.map(|post| event(post % 97 + 1, post + 1)).collect()
}

/// The tokens of batches with the events of each, in the order of storing.
type Stored = Vec<(String, Vec<u64>)>;

/// A store that records what it is given, and that a test can switch off.
#[derive(Clone, Default)]
struct Memory {
    attempts: Arc<Mutex<Vec<String>>>,
    stored: Arc<Mutex<Stored>>,
    busy: Arc<Mutex<BTreeSet<i32>>>,
    down: Arc<AtomicBool>,
}

impl Memory {
    fn posts(&self) -> Vec<u64> {
        let stored = self.stored.lock().unwrap();
        let mut posts: Vec<u64> = stored.iter().flat_map(|(_, posts)| posts.clone()).collect();
        posts.sort_unstable();
        posts
    }

    fn attempts(&self) -> Vec<String> {
        self.attempts.lock().unwrap().clone()
    }
}

impl BatchHandler for Memory {
    type Item = AcceptedEvent;

    fn decode(
        &self,
        _: &str,
        payload: Option<&[u8]>,
    ) -> Result<Option<AcceptedEvent>, Undecodable> {
        decode_event(payload).map(Some)
    }

    async fn store(&self, batches: &[Batch<AcceptedEvent>]) -> StoreResult<()> {
        let partitions = || batches.iter().map(|batch| batch.partition);
        for partition in partitions() {
            let alone = self.busy.lock().unwrap().insert(partition);
            assert!(alone, "partition {partition} is being stored already");
        }
        let tokens = batches.iter().map(Batch::token);
        self.attempts.lock().unwrap().extend(tokens);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let down = self.down.load(Ordering::Relaxed);
        if !down {
            let stored = batches.iter().map(|batch| {
                let posts = batch.rows.iter().map(|row| row.value.post_id);
                (batch.token(), posts.collect())
            });
            self.stored.lock().unwrap().extend(stored);
        }
        for partition in partitions() {
            self.busy.lock().unwrap().remove(&partition);
        }
        if !down {
            return Ok(());
        }
        Err(StoreError {
            store: "memory",
            query: "store",
            retryable: true,
            source: anyhow::anyhow!("down"),
        })
    }
}

struct Member {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Member {
    fn start(topics: &Topics, memory: &Memory, batch_max: usize) -> Self {
        Self::subscribe(topics, memory, portions(batch_max))
    }

    fn subscribe(
        Topics { settings, producer }: &Topics,
        memory: &Memory,
        subscription: Subscription,
    ) -> Self {
        let stop = CancellationToken::new();
        let task = Reader::start(
            settings,
            producer,
            subscription,
            memory.clone(),
            stop.clone(),
        );
        Self {
            stop,
            task: task.unwrap(),
        }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap();
    }
}

/// A subscription to events, in batches of at most `batch_max`.
fn portions(batch_max: usize) -> Subscription {
    Subscription {
        group: "nova-test",
        topics: vec![Topic::Events],
        dead_letters: Topic::EventsDeadLetters,
        linger: Duration::from_millis(50),
        batch_max,
        round_max: 5_000,
    }
}

/// Stops the member if a test fails, so that the test does not wait for it.
impl Drop for Member {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_created_once_and_creating_them_again_changes_nothing() {
    let Some(kafka) = topics().await else {
        return;
    };
    assert!(topics::create(&kafka.settings).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_sent_is_stored_once_and_nothing_is_left_for_a_second_member() {
    let Some(kafka) = topics().await else { return };
    let sink = KafkaSink::new(kafka.producer.clone());
    sink.ping().await.unwrap();
    assert_eq!(sink.write(&events(0..3_000), 1).await.unwrap(), 3_000);
    let memory = Memory::default();
    let first = Member::start(&kafka, &memory, 100);
    until("all stored", || memory.posts().len() >= 3_000).await;
    first.stop().await;
    assert_eq!(memory.posts(), (1..=3_000).collect::<Vec<_>>());
    let second = Member::start(&kafka, &memory, 100);
    sink.write(&events(3_000..3_100), 2).await.unwrap();
    until("the rest stored", || memory.posts().len() >= 3_100).await;
    second.stop().await;
    assert_eq!(memory.posts(), (1..=3_100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_member_repeats_a_started_batch_unchanged() {
    let Some(kafka) = topics().await else { return };
    let sink = KafkaSink::new(kafka.producer.clone());
    sink.write(&events(0..500), 1).await.unwrap();
    let failing = Memory::default();
    failing.down.store(true, Ordering::Relaxed);
    // The first round is repeated while the store is down, so it must contain every partition.
    let patient = Subscription {
        linger: Duration::from_secs(30),
        round_max: 500,
        ..portions(7)
    };
    let first = Member::subscribe(&kafka, &failing, patient);
    until("a second attempt at every partition", || {
        failing.attempts().len() >= 24
    })
    .await;
    first.stop().await;
    let begun: BTreeSet<String> = failing.attempts().into_iter().collect();
    assert_eq!(begun.len(), 12, "every attempt used the same batches");
    sink.write(&events(500..900), 2).await.unwrap();
    let healthy = Memory::default();
    let second = Member::start(&kafka, &healthy, 1_000);
    until("all stored", || healthy.posts().len() >= 900).await;
    second.stop().await;
    let mut first_attempts = BTreeMap::new();
    for token in healthy.attempts() {
        let partition = token.rsplit_once(':').unwrap().0.to_owned();
        first_attempts.entry(partition).or_insert(token);
    }
    let first_attempts: BTreeSet<String> = first_attempts.into_values().collect();
    assert_eq!(first_attempts, begun);
    assert_eq!(healthy.posts(), (1..=900).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_a_started_batch_waits_for_the_rest_even_if_it_fills_the_round() {
    let Some(kafka) = topics().await else { return };
    let sink = KafkaSink::new(kafka.producer.clone());
    begin_batches(&kafka.settings, 9);
    let of_one_partition = |posts: std::ops::Range<u64>| -> Vec<AcceptedEvent> {
        posts.map(|post| event(7, post + 1)).collect()
    };
    sink.write(&of_one_partition(0..5), 1).await.unwrap();
    let memory = Memory::default();
    let small_rounds = Subscription {
        round_max: 4,
        ..portions(3)
    };
    let member = Member::subscribe(&kafka, &memory, small_rounds);
    // Eight seconds are enough for many rounds. With fewer rounds, the test still passes.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(memory.attempts().is_empty());
    sink.write(&of_one_partition(5..10), 2).await.unwrap();
    until("all stored", || memory.posts().len() >= 10).await;
    member.stop().await;
    assert_eq!(memory.attempts().len(), 1, "as one batch");
    assert_eq!(memory.posts(), (1..=10).collect::<Vec<_>>());
}

/// Commits the offsets that a member leaves if it dies while it stores the first batch of every
/// partition. The metadata says that each batch ends at offset `last`.
fn begin_batches(settings: &KafkaSettings, last: i64) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", settings.group("nova-test"))
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..Topic::Events.partitions() {
        let topic = settings.topic(Topic::Events);
        let mut element = list.add_partition(&topic, partition);
        element.set_offset(Offset::Offset(0)).unwrap();
        element.set_metadata(format!(r#"{{"intent":{last}}}"#));
    }
    consumer.commit(&list, CommitMode::Sync).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_join_and_leave_and_no_partition_is_stored_by_two_at_a_time() {
    let Some(kafka) = topics().await else { return };
    let sink = KafkaSink::new(kafka.producer.clone());
    let memory = Memory::default();
    let one = Member::start(&kafka, &memory, 50);
    sink.write(&events(0..2_000), 1).await.unwrap();
    until("the first works", || !memory.attempts().is_empty()).await;
    let two = Member::start(&kafka, &memory, 50);
    sink.write(&events(2_000..6_000), 2).await.unwrap();
    until("half stored", || memory.posts().len() >= 3_000).await;
    memory.down.store(true, Ordering::Relaxed);
    let three = Member::start(&kafka, &memory, 50);
    one.stop().await;
    sink.write(&events(6_000..8_000), 3).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    memory.down.store(false, Ordering::Relaxed);
    until("all stored", || {
        memory.posts().iter().collect::<BTreeSet<_>>().len() >= 8_000
    })
    .await;
    two.stop().await;
    three.stop().await;
    let by_token: BTreeMap<String, Vec<u64>> =
        memory.stored.lock().unwrap().clone().into_iter().collect();
    let mut once: Vec<u64> = by_token.into_values().flatten().collect();
    once.sort_unstable();
    assert_eq!(
        once,
        (1..=8_000).collect::<Vec<_>>(),
        "posts that were stored twice were stored under one token"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_no_event_is_dead_lettered_with_its_reason_and_position() {
    let Some(kafka) = topics().await else { return };
    let Topics { settings, producer } = &kafka;
    let broken = Outgoing {
        key: Some(b"7".to_vec()),
        payload: b"{\"v\":1,".to_vec(),
        timestamp_ms: unix_ms(),
        headers: None,
    };
    let topic = settings.topic(Topic::Events);
    producer.send("test", &topic, [broken]).await.unwrap();
    let memory = Memory::default();
    let member = Member::start(&kafka, &memory, 50);
    KafkaSink::new(producer.clone())
        .write(&events(0..10), 1)
        .await
        .unwrap();
    until("the good ones stored", || memory.posts().len() == 10).await;
    let letter = tokio::task::spawn_blocking({
        let settings = settings.clone();
        move || first_message(&settings, Topic::EventsDeadLetters)
    });
    let (payload, headers) = letter.await.unwrap();
    member.stop().await;
    assert_eq!(payload, b"{\"v\":1,");
    assert_eq!(headers["reason"], "malformed");
    assert_eq!(headers["source.topic"], topic);
    assert_eq!(headers["source.offset"], "0");
    assert!(headers["source.partition"].parse::<i32>().is_ok());
}

fn first_message(settings: &KafkaSettings, topic: Topic) -> (Vec<u8>, BTreeMap<String, String>) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&settings.topic(topic), 0, Offset::Beginning)
        .unwrap();
    consumer.assign(&list).unwrap();
    let message = consumer.poll(Duration::from_secs(30)).unwrap().unwrap();
    let headers = message.headers().unwrap().iter().map(|header| {
        let value = String::from_utf8(header.value.unwrap().to_vec()).unwrap();
        (header.key.to_owned(), value)
    });
    (message.payload().unwrap().to_vec(), headers.collect())
}
