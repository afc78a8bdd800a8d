//! Reads topics as a member of a group and has every batch stored before its offsets are committed.
//!
//! One thread does everything in turn: gather a round of batches, note the intents, store, commit. Rebalances
//! happen only while it polls, that is, never while a batch is being stored: so no two members ever store the
//! same partition at once. A store that is down holds the round up; the thread then polls with everything
//! paused, which keeps its place in the group, and gives up batches whose partitions were taken away.

use super::batch::Batch;
use super::dead_letter::{DeadLetter, DeadLetters};
use super::group::{Change, Group, PartitionKey, Position};
use super::held::{Content, Cut, Held, Taken};
use super::linger::WaitForCompany;
use super::message::Undecodable;
use super::{KafkaSettings, Producer, Topic};
use crate::clock::unix_ms;
use crate::metrics::METRICS;
use crate::stores::StoreResult;
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

/// How long a poll waits at most, and so how soon a stop is noticed.
const POLL: Duration = Duration::from_millis(100);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
const LAG_INTERVAL: Duration = Duration::from_secs(1);
/// Before a reader that failed joins again.
const REJOIN_WAIT: Duration = Duration::from_secs(5);

/// What becomes of messages.
pub trait BatchHandler: Send + Sync + 'static {
    type Item: Send + Sync + 'static;

    /// `None` for a message that asks for nothing.
    ///
    /// # Errors
    /// The message becomes a dead letter.
    fn decode(
        &self,
        topic: &str,
        payload: Option<&[u8]>,
    ) -> Result<Option<Self::Item>, Undecodable>;

    /// Told now and then how old the oldest message of each topic is that is not stored yet; 0 s where all are.
    fn behind(&self, _by_topic: &BTreeMap<&str, f64>) {}

    /// Stores batches of different partitions. May be called again with the same batches, also by another host after a crash.
    fn store(&self, batches: &[Batch<Self::Item>]) -> impl Future<Output = StoreResult<()>> + Send;
}

/// Who reads what, and in which portions.
#[derive(Debug, Clone)]
pub struct Subscription {
    pub group: &'static str,
    pub topics: Vec<Topic>,
    pub dead_letters: Topic,
    /// How long the first batch of a round waits for company.
    pub linger: Duration,
    /// Messages of one partition stored together.
    pub batch_max: usize,
    /// Messages in memory that end a round early.
    pub round_max: usize,
}

pub struct Reader<H: BatchHandler> {
    group: Group,
    handler: Arc<H>,
    dead_letters: DeadLetters,
    subscription: Subscription,
    held: Held<H::Item>,
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

/// Batches on their way into the store, and how far they got.
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
    Cut,
    Intended,
    Buried,
    Stored,
    Committed,
}

impl<H: BatchHandler> Reader<H> {
    /// Starts the reading thread; it ends after `stop`, with the round it is in.
    ///
    /// # Errors
    /// When the settings are invalid. Brokers that are down are waited for.
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
                held: Held::default(),
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

    /// Ends with the stop, or when the consumer is beyond help.
    fn run(mut self) -> anyhow::Result<()> {
        while !self.stop.is_cancelled() {
            if let Some((code, reason)) = self.group.fatal_error() {
                anyhow::bail!("{code}: {reason}");
            }
            self.gather();
            let cuts = self.held.cut(self.subscription.batch_max);
            if !cuts.is_empty() {
                let round = Round::of(cuts);
                self.show_lag(Some(&round));
                self.settle(round);
            }
        }
        Ok(())
    }

    /// What is not stored yet counts for as long as it is not, also while the store is down: an alert on the lag must not
    /// wait for the batch that never comes.
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
        for (key, waiting) in self.held.oldest() {
            // What is on its way into the store came before what is still held.
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

    /// Polls until there is something to cut and the round is full, or has waited long enough for company.
    fn gather(&mut self) {
        let mut wait = WaitForCompany::of(&self.held);
        while !self.stop.is_cancelled()
            && let Some(left) = wait.left(&self.held, &self.subscription)
        {
            self.poll(left.min(POLL));
            self.show_lag(None);
        }
    }

    /// Takes at most one message, and serves the group. Returns the partitions that were taken away.
    fn poll(&mut self, wait: Duration) -> Vec<PartitionKey> {
        let polled = self.group.consumer().poll(wait);
        let taken = match polled {
            None => None,
            Some(Ok(message)) => Some(take(self.handler.as_ref(), &message)),
            Some(Err(error)) => {
                tracing::warn!(group = self.subscription.group, %error, "kafka consumer");
                None
            }
        };
        // An assignment may have happened in the poll that brought its first message.
        let revoked = self.follow_group();
        if let Some((key, taken)) = taken {
            self.held.push(&key, taken);
        }
        revoked
    }

    fn follow_group(&mut self) -> Vec<PartitionKey> {
        let mut revoked = Vec::new();
        for change in self.group.changes() {
            match change {
                Change::Assigned(key) => self.held.assign(key),
                Change::Revoked(key) => {
                    self.held.revoke(&key);
                    let labels = [key.0.as_str(), &key.1.to_string()];
                    // Absent when nothing was reported yet.
                    let _ = METRICS.kafka_consumer_lag.remove_label_values(&labels);
                    let _ = METRICS
                        .kafka_consumer_lag_seconds
                        .remove_label_values(&labels);
                    revoked.push(key);
                }
            }
        }
        let unknown = self.held.unknown();
        if !unknown.is_empty() {
            match self.group.intents(&unknown) {
                Ok(intents) => {
                    for (key, intent) in intents {
                        self.held.set_intent(&key, intent);
                    }
                }
                Err(error) => {
                    tracing::warn!(group = self.subscription.group, %error, "committed offsets")
                }
            }
        }
        revoked
    }

    /// Repeats until the round is stored and committed, or is somebody else's.
    fn settle(&mut self, mut round: Round<H::Item>) {
        let mut wait = RETRY_FIRST;
        while !round.batches.is_empty() {
            match self.advance(&mut round) {
                Ok(()) => return self.report(&round),
                Err(error) => {
                    tracing::error!(
                        group = self.subscription.group,
                        error = format!("{error:#}"),
                        "a round cannot be stored yet; its messages stay in the topic"
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
        if round.step < Step::Buried {
            for receipt in &round.receipts {
                self.runtime
                    .block_on(self.dead_letters.put(&receipt.dead))?;
            }
            round.step = Step::Buried;
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

    /// Keeps the place in the group without taking more than what is held.
    fn wait_polling(&mut self, wait: Duration, round: &mut Round<H::Item>) {
        if let Err(error) = self.group.pause() {
            tracing::warn!(group = self.subscription.group, %error, "pausing partitions");
        }
        let until = Instant::now() + wait;
        while !self.stop.is_cancelled() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            round.give_up(&self.poll(left.min(POLL)));
            self.show_lag(Some(round));
        }
        if let Err(error) = self.group.resume() {
            tracing::warn!(group = self.subscription.group, %error, "resuming partitions");
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

/// Nobody else would notice that a reader is gone: it joins again after whatever ended it. What it held is read again
/// from the committed offsets.
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
                        "a consumer ended; it joins again"
                    );
                }
                Err(_) => tracing::error!(group, "a consumer panicked; it joins again"),
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
                    "a consumer cannot join"
                );
            }
        }
    }
}

impl<T> Round<T> {
    fn of(cuts: Vec<Cut<T>>) -> Self {
        let (batches, receipts) = cuts
            .into_iter()
            .map(|cut| {
                let receipt = Receipt {
                    dead: cut.dead,
                    messages: cut.messages,
                };
                (cut.batch, receipt)
            })
            .unzip();
        Self {
            batches,
            receipts,
            step: Step::Cut,
        }
    }

    /// The offsets unchanged, with the end of what is about to be stored beside them.
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

    /// The time of the first message of a partition's batch.
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
) -> (PartitionKey, Taken<H::Item>) {
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
    let taken = Taken {
        offset,
        at_ms,
        content,
    };
    ((topic.to_owned(), partition), taken)
}
