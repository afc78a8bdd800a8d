//! The producer of a host; there is one per host. It is idempotent, waits for acks from all
//! in-sync replicas and reports one result for a whole batch.

use super::{KafkaSettings, STORE, error, log};
use crate::ports::StoreResult;
use arc_swap::ArcSwap;
use nova_support::metrics::METRICS;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Time in ms after which a message counts as failed and its sender tries again. A longer timeout
/// than a broker needs to restart would only delay the reader of the spool.
const DELIVERY_TIMEOUT: &str = "15000";
/// Linger time in ms: long enough to fill requests under load, and short compared with the
/// rest of an event's path.
const LINGER: &str = "5";
const PING_TIMEOUT: Duration = Duration::from_secs(2);
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(2);

/// A message to be sent.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// The key that selects the partition; without a key the partition is random.
    pub key: Option<Vec<u8>>,
    pub payload: Vec<u8>,
    pub timestamp_ms: u64,
    pub headers: Option<OwnedHeaders>,
}

/// Handle to the shared producer. It is cheap to clone; clones share connections and the queue.
#[derive(Clone)]
pub struct Producer {
    shared: Arc<Shared>,
}

struct Shared {
    settings: KafkaSettings,
    native: ArcSwap<ThreadedProducer<Reports>>,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}

/// The delivery of one batch: the number of outstanding messages, and the first failure.
#[derive(Debug)]
struct Delivery {
    outstanding: AtomicUsize,
    failure: Mutex<Option<KafkaError>>,
    done: Notify,
}

impl Delivery {
    /// Starts the count at one. The extra one stands for the batch itself, until its last
    /// message is handed over.
    fn begin() -> Arc<Self> {
        Arc::new(Self {
            outstanding: AtomicUsize::new(1),
            failure: Mutex::new(None),
            done: Notify::new(),
        })
    }

    fn settle(&self, failure: Option<KafkaError>) {
        if let Some(failure) = failure {
            self.failure().get_or_insert(failure);
        }
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    async fn wait(&self) -> KafkaResult<()> {
        self.settle(None);
        self.done.notified().await;
        self.failure().take().map_or(Ok(()), Err)
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<KafkaError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Reports;

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(target: "kafka", %error, reason, "the Kafka producer reports an error; librdkafka tries again");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Arc<Delivery>) {
        delivery.settle(result.as_ref().err().map(|(error, _)| error.clone()));
    }
}

impl Producer {
    /// Connects in the background, so brokers that are down now cause no error.
    ///
    /// # Errors
    /// Fails if the settings are invalid.
    pub fn start(settings: &KafkaSettings) -> anyhow::Result<Self> {
        let native = connect(settings)?;
        Ok(Self {
            shared: Arc::new(Shared {
                settings: settings.clone(),
                native: ArcSwap::from_pointee(native),
            }),
        })
    }

    pub fn settings(&self) -> &KafkaSettings {
        &self.shared.settings
    }

    /// Sends a batch and waits until all its messages are durable on the brokers. After an
    /// error, any part of the batch may be on the brokers, including a message that timed out,
    /// so consumers must expect repeats.
    ///
    /// # Errors
    /// Fails if a message was not acknowledged within the delivery timeout.
    pub async fn send(
        &self,
        query: &'static str,
        topic: &str,
        batch: impl IntoIterator<Item = Outgoing, IntoIter: Send>,
    ) -> StoreResult<()> {
        let started = Instant::now();
        let native = self.shared.native.load_full();
        let delivery = Delivery::begin();
        let mut messages = 0;
        let mut outcome = Ok(());
        let mut batch = batch.into_iter();
        while let (Ok(()), Some(message)) = (&outcome, batch.next()) {
            outcome = enqueue(&native, topic, message, &delivery).await;
            messages += 1;
        }
        let outcome = outcome.and(delivery.wait().await);
        let status = if outcome.is_ok() { "ok" } else { "error" };
        METRICS
            .kafka_messages_sent_total
            .with_label_values(&[topic, status])
            .inc_by(messages);
        METRICS.observe_store(STORE, query, started.elapsed(), outcome.is_ok());
        outcome.map_err(|failure| {
            self.replace_if_dead(&native);
            error(query, failure)
        })
    }

    /// Asks the brokers for the metadata of a topic.
    ///
    /// # Errors
    /// Fails if the brokers do not answer or do not know the topic.
    pub async fn ping(&self, topic: &str) -> StoreResult<()> {
        let (native, topic) = (self.shared.native.load_full(), topic.to_owned());
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = native.client().fetch_metadata(Some(&topic), PING_TIMEOUT)?;
            let known = metadata
                .topics()
                .iter()
                .all(|topic| topic.error().is_none());
            anyhow::ensure!(known, "no topic {topic}; `nova migrate` creates it");
            Ok(())
        });
        let answer = asked.await.unwrap_or_else(|error| Err(error.into()));
        answer.map_err(|failure| error("ping", failure))
    }

    /// Replaces the producer after a fatal error, because an idempotent producer then fails every
    /// further message with that error.
    fn replace_if_dead(&self, native: &Arc<ThreadedProducer<Reports>>) {
        let Some((code, reason)) = native.client().fatal_error() else {
            return;
        };
        tracing::error!(store = STORE, %code, reason, "the Kafka producer had a fatal error; replacing it with a new one");
        match connect(&self.shared.settings) {
            Ok(fresh) => {
                self.shared.native.compare_and_swap(native, Arc::new(fresh));
            }
            Err(error) => {
                tracing::error!(store = STORE, %error, "could not replace the Kafka producer; trying again at the next failed batch")
            }
        }
    }
}

fn connect(settings: &KafkaSettings) -> KafkaResult<ThreadedProducer<Reports>> {
    settings
        .client()
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("delivery.timeout.ms", DELIVERY_TIMEOUT)
        .set("linger.ms", LINGER)
        // The partitioner of the Java client, so that other clients put the same user
        // into the same partition.
        .set("partitioner", "murmur2_random")
        .set("compression.type", "lz4")
        .create_with_context(Reports)
}

/// Puts a message into the queue. A full queue is back-pressure, not a failure: its messages are
/// delivered or time out, so this waits for space.
async fn enqueue(
    native: &ThreadedProducer<Reports>,
    topic: &str,
    message: Outgoing,
    delivery: &Arc<Delivery>,
) -> KafkaResult<()> {
    let mut record = BaseRecord::with_opaque_to(topic, delivery.clone())
        .payload(&message.payload)
        .timestamp(message.timestamp_ms as i64);
    record.key = message.key.as_ref();
    record.headers = message.headers;
    delivery.outstanding.fetch_add(1, Ordering::AcqRel);
    loop {
        match native.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                tokio::time::sleep(QUEUE_FULL_WAIT).await;
            }
            Err((error, _)) => {
                delivery.settle(None);
                return Err(error);
            }
        }
    }
}
