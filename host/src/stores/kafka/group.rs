//! One membership of a consumer group: who was given which partitions, and where each left off.
//!
//! The group keeps a note beside every offset. Ours is the **intent**: the last offset of the batch that
//! begins at the committed one and may have been stored in part. Whoever owns the partition next repeats
//! exactly that batch, so that the store can tell a repeat from something new.

use super::{KafkaSettings, log};
use crate::metrics::METRICS;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How soon the group takes a member for dead, and its partitions away.
const SESSION_TIMEOUT: &str = "10000";
const HEARTBEAT: &str = "3000";
/// A batch may wait for a slow store, and its owner does not poll meanwhile; stores have deadlines far below this.
const POLL_INTERVAL_MAX: &str = "300000";
const STATISTICS_INTERVAL: &str = "5000";
/// Topics may be made after the host was started.
const METADATA_INTERVAL: &str = "10000";
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

pub type PartitionKey = (String, i32);

/// What a rebalance did, in the order in which it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Assigned(PartitionKey),
    Revoked(PartitionKey),
}

pub struct Group {
    consumer: BaseConsumer<Membership>,
}

struct Membership {
    changes: Mutex<Vec<Change>>,
}

/// An offset to commit: what comes next, and the note beside it.
#[derive(Debug, Clone)]
pub struct Position {
    pub topic: String,
    pub partition: i32,
    pub next: i64,
    pub intent: Option<i64>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The last offset of the batch that was begun.
    intent: i64,
}

impl Group {
    /// Joins in the background.
    ///
    /// # Errors
    /// When the settings are invalid.
    pub fn join(settings: &KafkaSettings, group: &str, topics: &[&str]) -> anyhow::Result<Self> {
        let mut config = settings.client();
        config
            .set("group.id", settings.group(group))
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", SESSION_TIMEOUT)
            .set("heartbeat.interval.ms", HEARTBEAT)
            .set("max.poll.interval.ms", POLL_INTERVAL_MAX)
            .set("statistics.interval.ms", STATISTICS_INTERVAL)
            .set("topic.metadata.refresh.interval.ms", METADATA_INTERVAL)
            // Messages fetched ahead, beside those that wait to be stored.
            .set("queued.max.messages.kbytes", "16384");
        if let Some(instance) = &settings.instance {
            config.set("group.instance.id", format!("{instance}-{group}"));
        }
        let membership = Membership {
            changes: Mutex::new(Vec::new()),
        };
        let consumer: BaseConsumer<Membership> = config.create_with_context(membership)?;
        consumer.subscribe(topics)?;
        Ok(Self { consumer })
    }

    pub fn consumer(&self) -> &BaseConsumer<impl ConsumerContext> {
        &self.consumer
    }

    /// Why the consumer can never read again, if it cannot.
    pub fn fatal_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.consumer.client().fatal_error()
    }

    /// What happened to the assignment since this was asked last. Rebalances happen only while polling.
    pub fn changes(&self) -> Vec<Change> {
        std::mem::take(&mut *self.consumer.context().lock())
    }

    /// The intents beside the committed offsets of partitions.
    ///
    /// # Errors
    /// When the group's coordinator does not answer: nothing may be stored without knowing.
    pub fn intents(
        &self,
        partitions: &[PartitionKey],
    ) -> KafkaResult<Vec<(PartitionKey, Option<i64>)>> {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            list.add_partition(topic, *partition);
        }
        let committed = self.consumer.committed_offsets(list, FETCH_TIMEOUT)?;
        committed
            .elements()
            .iter()
            .map(|found| {
                found.error()?;
                let key = (found.topic().to_owned(), found.partition());
                Ok((key, parse_intent(found.metadata())))
            })
            .collect()
    }

    /// Commits positions and waits until the group has them. A member that lost its partitions is refused here.
    ///
    /// # Errors
    /// When the group did not take them.
    pub fn commit(&self, positions: &[Position]) -> KafkaResult<()> {
        let mut list = TopicPartitionList::with_capacity(positions.len());
        for position in positions {
            let mut element = list.add_partition(&position.topic, position.partition);
            element.set_offset(Offset::Offset(position.next))?;
            if let Some(intent) = position.intent {
                element.set_metadata(note(intent));
            }
        }
        self.consumer.commit(&list, CommitMode::Sync)
    }

    /// # Errors
    /// When librdkafka does not know the partitions any more.
    pub fn pause(&self) -> KafkaResult<()> {
        self.consumer.pause(&self.consumer.assignment()?)
    }

    /// # Errors
    /// When librdkafka does not know the partitions any more.
    pub fn resume(&self) -> KafkaResult<()> {
        self.consumer.resume(&self.consumer.assignment()?)
    }
}

fn note(intent: i64) -> String {
    // One number cannot fail to be written.
    serde_json::to_string(&Note { intent }).unwrap_or_default()
}

/// A note that is not ours is no intent: another tool moved the offsets on purpose.
fn parse_intent(metadata: &str) -> Option<i64> {
    serde_json::from_str(metadata)
        .ok()
        .map(|Note { intent }| intent)
}

impl Membership {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, partitions: &TopicPartitionList, change: fn(PartitionKey) -> Change) {
        let keys = partitions.elements();
        let keys = keys
            .iter()
            .map(|element| (element.topic().to_owned(), element.partition()));
        self.lock().extend(keys.map(change));
    }
}

impl ClientContext for Membership {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(target: "kafka", %error, reason, "consumer");
    }

    fn stats(&self, statistics: Statistics) {
        for (topic, found) in &statistics.topics {
            for (id, partition) in &found.partitions {
                // −1 before the first commit is known, and for partitions of other members.
                if partition.consumer_lag >= 0 && partition.desired {
                    METRICS
                        .kafka_consumer_lag
                        .with_label_values(&[topic.as_str(), &id.to_string()])
                        .set(partition.consumer_lag);
                }
            }
        }
    }
}

impl ConsumerContext for Membership {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => self.note(partitions, Change::Assigned),
            Rebalance::Revoke(partitions) => self.note(partitions, Change::Revoked),
            Rebalance::Error(error) => tracing::warn!(target: "kafka", %error, "rebalance"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_is_read_as_it_was_written_and_other_notes_are_none() {
        assert_eq!(note(41), r#"{"intent":41}"#);
        assert_eq!(parse_intent(&note(41)), Some(41));
        for other in ["", "moved by hand", "{}", r#"{"intent":"x"}"#] {
            assert_eq!(parse_intent(other), None, "{other}");
        }
    }
}
