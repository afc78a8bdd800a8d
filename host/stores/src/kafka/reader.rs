//! The consumer loop: it reads topics as a member of a consumer group and has every batch stored
//! before its offsets are committed.
//!
//! One thread does everything in turn: it gathers a round of batches, commits the intents,
//! stores the batches and commits the offsets. Rebalances happen only while it polls, so never
//! while a batch is being stored. Therefore no two members ever store the same partition at
//! once. If a store is down, the round waits. The thread then polls with all partitions paused,
//! which keeps its membership in the group, and drops batches whose partitions were revoked.

use super::batch::Batch;
use super::dead_letter::{DeadLetter, DeadLetters};
use super::group::{AssignmentChange, Group, PartitionKey, Position};
use super::linger::LingerTimer;
use super::message::Undecodable;
use super::partition_buffer::{BufferedMessage, Content, PartitionBuffer, SealedBatch};
use super::subscription::Subscription;
use super::{KafkaSettings, Producer};
use crate::ports::StoreResult;
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;
use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest time that one poll waits, and so the longest delay before a stop is noticed.
const POLL: Duration = Duration::from_millis(100);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
const LAG_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before a reader that failed joins the group again.
const REJOIN_WAIT: Duration = Duration::from_secs(5);

/// Decodes the messages of a subscription and stores them in batches.
pub trait BatchHandler: Send + Sync + 'static {
    type Item: Send + Sync + 'static;

    /// Decodes a message. Returns `None` if it holds nothing to store.
    ///
    /// # Errors
    /// If decoding fails, the message becomes a dead letter.
    fn decode(
        &self,
        topic: &str,
        payload: Option<&[u8]>,
    ) -> Result<Option<Self::Item>, Undecodable>;

    /// Called regularly with the age in seconds of the oldest message of each topic that is not
    /// stored yet; 0 s if all are stored.
    fn behind(&self, _by_topic: &BTreeMap<&str, f64>) {}

    /// Stores batches of different partitions. It may be called again with the same batches, also
    /// by another host after a crash.
    fn store(&self, batches: &[Batch<Self::Item>]) -> impl Future<Output = StoreResult<()>> + Send;
}

pub struct Reader<H: BatchHandler> {
    group: Group,
    handler: Arc<H>,
    dead_letters: DeadLetters,
    subscription: Subscription,
    buffer: PartitionBuffer<H::Item>,
    runtime: Handle,
    lag_shown: Option<Instant>,
    stop: CancellationToken,
}

impl<H: BatchHandler> std::fmt::Debug for Reader<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("subscription", &self.subscription)
            .finish_non_exhaustive()
    }
}

/// Sealed batches that are being stored, and the last step that they completed.
struct Round<T> {
    batches: Vec<Batch<T>>,
    receipts: Vec<Receipt>,
    step: Step,
}

struct Receipt {
    dead: Vec<DeadLetter>,
    messages: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Sealed,
    Intended,
    DeadLettered,
    Stored,
    Committed,
}

impl<H: BatchHandler> Reader<H> {
    /// Starts the reading thread. After `stop` it finishes the round that is in progress and ends.
    ///
    /// # Errors
    /// Fails if the settings are invalid. If brokers are down, the thread waits for them.
    pub fn start(
        settings: &KafkaSettings,
        producer: &Producer,
        subscription: Subscription,
        handler: H,
        stop: CancellationToken,
    ) -> anyhow::Result<JoinHandle<()>> {
        let topics: Vec<String> = subscription
            .topics
            .iter()
            .map(|topic| settings.topic(*topic))
            .collect();
        let (settings, runtime, handler) = (settings.clone(), Handle::current(), Arc::new(handler));
        let dead_letters =
            DeadLetters::new(producer.clone(), settings.topic(subscription.dead_letters));
        let join = move || -> anyhow::Result<Self> {
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            Ok(Self {
                group: Group::join(&settings, subscription.group, &names)?,
                handler: handler.clone(),
                dead_letters: dead_letters.clone(),
                subscription: subscription.clone(),
                buffer: PartitionBuffer::default(),
                runtime: runtime.clone(),
                lag_shown: None,
                stop: stop.clone(),
            })
        };
        let first = join()?;
        Ok(tokio::task::spawn_blocking(move || {
            keep_reading(first, join)
        }))
    }

    /// Runs until the stop, or until the consumer meets a fatal error.
    fn run(mut self) -> anyhow::Result<()> {
        while !self.stop.is_cancelled() {
            if let Some((code, reason)) = self.group.fatal_error() {
                anyhow::bail!("{code}: {reason}");
            }
            self.gather();
            let batches = self.buffer.seal(self.subscription.batch_max);
            if !batches.is_empty() {
                let round = Round::new(batches);
                self.show_lag(Some(&round));
                self.settle(round);
            }
        }
        Ok(())
    }

    /// Publishes the lag. A message counts until it is stored, also while the store is down,
    /// because an alert on the lag must not wait for a batch that is never stored.
    fn show_lag(&mut self, round: Option<&Round<H::Item>>) {
        if self
            .lag_shown
            .is_some_and(|shown| shown.elapsed() < LAG_INTERVAL)
        {
            return;
        }
        self.lag_shown = Some(Instant::now());
        let now_ms = unix_ms();
        let mut by_topic = BTreeMap::new();
        for (key, waiting) in self.buffer.oldest() {
            // Messages that are being stored are older than those that are still buffered.
            let on_its_way = round.and_then(|round| round.oldest(key));
            let seconds = on_its_way
                .or(waiting)
                .map_or(0.0, |at_ms| now_ms.saturating_sub(at_ms) as f64 / 1_000.0);
            METRICS
                .kafka_consumer_lag_seconds
                .with_label_values(&[key.0.as_str(), &key.1.to_string()])
                .set(seconds);
            let most = by_topic.entry(key.0.as_str()).or_insert(0.0_f64);
            *most = most.max(seconds);
        }
        self.handler.behind(&by_topic);
    }

    /// Polls until a batch can be sealed and either the round is full or the linger time is over.
    fn gather(&mut self) {
        let mut wait = LingerTimer::new(&self.buffer);
        while !self.stop.is_cancelled()
            && let Some(left) = wait.left(&self.buffer, &self.subscription)
        {
            self.poll(left.min(POLL));
            self.show_lag(None);
        }
    }

    /// Takes at most one message and handles changes of the assignment. Returns the
    /// partitions that were revoked.
    fn poll(&mut self, wait: Duration) -> Vec<PartitionKey> {
        let polled = self.group.consumer().poll(wait);
        let taken = match polled {
            None => None,
            Some(Ok(message)) => Some(take(self.handler.as_ref(), &message)),
            Some(Err(error)) => {
                tracing::warn!(group = self.subscription.group, %error, "could not read from Kafka; polling again");
                None
            }
        };
        // The poll that brings the first message of a partition may also have brought its
        // assignment.
        let revoked = self.follow_group();
        if let Some((key, taken)) = taken {
            self.buffer.push(&key, taken);
        }
        revoked
    }

    fn follow_group(&mut self) -> Vec<PartitionKey> {
        let mut revoked = Vec::new();
        for change in self.group.changes() {
            match change {
                AssignmentChange::Assigned(key) => self.buffer.assign(key),
                AssignmentChange::Revoked(key) => {
                    self.buffer.revoke(&key);
                    let labels = [key.0.as_str(), &key.1.to_string()];
                    // Removal fails if nothing was reported yet; that is no error.
                    let _ = METRICS.kafka_consumer_lag.remove_label_values(&labels);
                    let _ = METRICS
                        .kafka_consumer_lag_seconds
                        .remove_label_values(&labels);
                    revoked.push(key);
                }
            }
        }
        let unknown = self.buffer.unknown();
        if !unknown.is_empty() {
            match self.group.intents(&unknown) {
                Ok(intents) => {
                    for (key, intent) in intents {
                        self.buffer.set_intent(&key, intent);
                    }
                }
                Err(error) => {
                    tracing::warn!(group = self.subscription.group, %error, "could not read committed offsets from Kafka; reading them again at the next poll")
                }
            }
        }
        revoked
    }

    /// Retries until the round is stored and committed, or until all its partitions are revoked
    /// or the reader stops.
    fn settle(&mut self, mut round: Round<H::Item>) {
        let mut wait = RETRY_FIRST;
        while !round.batches.is_empty() {
            match self.advance(&mut round) {
                Ok(()) => return self.report(&round),
                Err(error) => {
                    tracing::error!(
                        group = self.subscription.group,
                        error = format!("{error:#}"),
                        "could not store a round of batches; its messages stay in the topic, and the consumer tries again"
                    );
                }
            }
            if self.stop.is_cancelled() {
                return;
            }
            self.wait_polling(wait, &mut round);
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    fn advance(&self, round: &mut Round<H::Item>) -> anyhow::Result<()> {
        if round.step < Step::Intended {
            self.group.commit(&round.intents())?;
            round.step = Step::Intended;
        }
        if round.step < Step::DeadLettered {
            for receipt in &round.receipts {
                self.runtime
                    .block_on(self.dead_letters.put(&receipt.dead))?;
            }
            round.step = Step::DeadLettered;
        }
        if round.step < Step::Stored {
            self.runtime.block_on(self.handler.store(&round.batches))?;
            round.step = Step::Stored;
        }
        if round.step < Step::Committed {
            self.group.commit(&round.positions())?;
            round.step = Step::Committed;
        }
        Ok(())
    }

    /// Waits before a retry. It polls with all partitions paused, which keeps the group membership
    /// without fetching more messages.
    fn wait_polling(&mut self, wait: Duration, round: &mut Round<H::Item>) {
        if let Err(error) = self.group.pause() {
            tracing::warn!(group = self.subscription.group, %error, "could not pause partitions; polling without a pause");
        }
        let until = Instant::now() + wait;
        while !self.stop.is_cancelled() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            round.give_up(&self.poll(left.min(POLL)));
            self.show_lag(Some(round));
        }
        if let Err(error) = self.group.resume() {
            tracing::warn!(group = self.subscription.group, %error, "could not resume partitions; some may stay paused");
        }
    }

    fn report(&self, round: &Round<H::Item>) {
        for (batch, receipt) in round.batches.iter().zip(&round.receipts) {
            METRICS
                .kafka_messages_consumed_total
                .with_label_values(&[batch.topic.as_ref(), self.subscription.group])
                .inc_by(receipt.messages);
        }
    }
}

/// Runs a reader and, if it fails or panics, joins the group again, because no other part
/// would notice that the reader is gone. Messages that it had buffered are read again from
/// the committed offsets.
fn keep_reading<H: BatchHandler>(first: Reader<H>, join: impl Fn() -> anyhow::Result<Reader<H>>) {
    let (stop, group) = (first.stop.clone(), first.subscription.group);
    let mut next = Some(first);
    loop {
        if let Some(reader) = next.take() {
            match std::panic::catch_unwind(AssertUnwindSafe(|| reader.run())) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    tracing::error!(
                        group,
                        error = format!("{error:#}"),
                        "a consumer failed; it joins its group again"
                    );
                }
                Err(_) => tracing::error!(group, "a consumer panicked; it joins its group again"),
            }
        }
        let until = Instant::now() + REJOIN_WAIT;
        while Instant::now() < until {
            if stop.is_cancelled() {
                return;
            }
            std::thread::sleep(POLL);
        }
        match join() {
            Ok(reader) => next = Some(reader),
            Err(error) => {
                tracing::error!(
                    group,
                    error = format!("{error:#}"),
                    "a consumer could not join its group; trying again"
                );
            }
        }
    }
}

impl<T> Round<T> {
    fn new(sealed: Vec<SealedBatch<T>>) -> Self {
        let (batches, receipts) = sealed
            .into_iter()
            .map(|sealed| {
                let receipt = Receipt {
                    dead: sealed.dead,
                    messages: sealed.messages,
                };
                (sealed.batch, receipt)
            })
            .unzip();
        Self {
            batches,
            receipts,
            step: Step::Sealed,
        }
    }

    /// Positions that leave the offsets unchanged and carry the last offset of the batch that
    /// is about to be stored.
    fn intents(&self) -> Vec<Position> {
        self.each(|batch| (batch.first, Some(batch.last)))
    }

    fn positions(&self) -> Vec<Position> {
        self.each(|batch| (batch.last + 1, None))
    }

    fn each(&self, position: impl Fn(&Batch<T>) -> (i64, Option<i64>)) -> Vec<Position> {
        let of = |batch: &Batch<T>| {
            let (next, intent) = position(batch);
            Position {
                topic: batch.topic.as_ref().to_owned(),
                partition: batch.partition,
                next,
                intent,
            }
        };
        self.batches.iter().map(of).collect()
    }

    /// Timestamp of the first message in a partition's batch.
    fn oldest(&self, (topic, partition): &PartitionKey) -> Option<u64> {
        let mut batches = self.batches.iter();
        let batch = batches.find(|batch| {
            batch.partition == *partition && batch.topic.as_ref() == topic.as_str()
        })?;
        Some(batch.first_at_ms)
    }

    fn give_up(&mut self, revoked: &[PartitionKey]) {
        for (topic, partition) in revoked {
            let at = self.batches.iter().position(|batch| {
                batch.partition == *partition && batch.topic.as_ref() == topic.as_str()
            });
            if let Some(at) = at {
                self.batches.remove(at);
                self.receipts.remove(at);
            }
        }
    }
}

fn take<H: BatchHandler>(
    handler: &H,
    message: &BorrowedMessage<'_>,
) -> (PartitionKey, BufferedMessage<H::Item>) {
    let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
    let content = match handler.decode(topic, message.payload()) {
        Ok(Some(item)) => Content::Row(item),
        Ok(None) => Content::Nothing,
        Err(why) => Content::Dead(DeadLetter::new(
            (topic, partition, offset),
            (message.key(), message.payload()),
            &why,
        )),
    };
    let at_ms = message.timestamp().to_millis().unwrap_or(0).max(0) as u64;
    let taken = BufferedMessage {
        offset,
        at_ms,
        content,
    };
    ((topic.to_owned(), partition), taken)
}
