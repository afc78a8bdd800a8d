//! The one producer of a host: idempotent, acks from all in-sync replicas, and one report for a whole batch.

use super::{KafkaSettings, STORE, error, log};
use crate::metrics::METRICS;
use crate::stores::StoreResult;
use arc_swap::ArcSwap;
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

/// Then a message has failed and its sender tries again. Longer than a broker's restart would only hold the spool's reader up.
const DELIVERY_TIMEOUT: &str = "15000";
/// Long enough to fill requests under load, short beside everything else on an event's way.
const LINGER: &str = "5";
const PING_TIMEOUT: Duration = Duration::from_secs(2);
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(2);

/// A message on its way out.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// What the partition is chosen by; random without.
    pub key: Option<Vec<u8>>,
    pub payload: Vec<u8>,
    pub timestamp_ms: u64,
    pub headers: Option<OwnedHeaders>,
}

/// Cheap to clone; clones share connections and queue.
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

/// The delivery of one batch: how many messages are under way, and the first failure.
#[derive(Debug)]
struct Delivery {
    outstanding: AtomicUsize,
    failure: Mutex<Option<KafkaError>>,
    done: Notify,
}

impl Delivery {
    /// One more than nothing: the batch itself, until its last message is handed over.
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
        tracing::warn!(target: "kafka", %error, reason, "producer");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Arc<Delivery>) {
        delivery.settle(result.as_ref().err().map(|(error, _)| error.clone()));
    }
}

impl Producer {
    /// Connects in the background: brokers that are down now are no error.
    ///
    /// # Errors
    /// When the settings are invalid.
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

    /// Hands a batch over and waits until every message of it is durable on the brokers. After an error any part of it
    /// may be there, also a message that timed out: whoever reads must expect repeats.
    ///
    /// # Errors
    /// When one message was not acknowledged within the delivery timeout.
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

    /// Asks the brokers for a topic.
    ///
    /// # Errors
    /// When they do not answer, or do not know it.
    pub async fn ping(&self, topic: &str) -> StoreResult<()> {
        let (native, topic) = (self.shared.native.load_full(), topic.to_owned());
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = native.client().fetch_metadata(Some(&topic), PING_TIMEOUT)?;
            let known = metadata
                .topics()
                .iter()
                .all(|topic| topic.error().is_none());
            anyhow::ensure!(known, "no topic {topic}; `nova migrate` makes it");
            Ok(())
        });
        let answer = asked.await.unwrap_or_else(|error| Err(error.into()));
        answer.map_err(|failure| error("ping", failure))
    }

    /// An idempotent producer that met a fatal error answers every message with it, for ever.
    fn replace_if_dead(&self, native: &Arc<ThreadedProducer<Reports>>) {
        let Some((code, reason)) = native.client().fatal_error() else {
            return;
        };
        tracing::error!(store = STORE, %code, reason, "the producer failed for good; a new one takes its place");
        match connect(&self.shared.settings) {
            Ok(fresh) => {
                self.shared.native.compare_and_swap(native, Arc::new(fresh));
            }
            Err(error) => tracing::error!(store = STORE, %error, "no new producer"),
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
        // Java's own: other clients put the same user into the same partition.
        .set("partitioner", "murmur2_random")
        .set("compression.type", "lz4")
        .create_with_context(Reports)
}

/// A full queue is back-pressure, not a failure: what is in it leaves or times out.
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
