//! One membership of a consumer group: the partitions that are assigned to this host, and the
//! committed position of each.
//!
//! Kafka keeps a metadata note with every committed offset. Nova stores the **intent** in it:
//! the last offset of the batch that begins at the committed offset and may have been stored in
//! part. The next owner of the partition repeats exactly that batch, so that the store can tell
//! a repeat from new messages.

use super::{KafkaSettings, log};
use nova_support::metrics::METRICS;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Time in ms after which the group declares a silent member dead and takes its partitions away.
const SESSION_TIMEOUT: &str = "10000";
const HEARTBEAT: &str = "3000";
/// Longest time in ms between two polls. A batch may wait for a slow store, and its owner does
/// not poll in the meantime; the deadlines of the stores are far shorter than this.
const POLL_INTERVAL_MAX: &str = "300000";
const STATISTICS_INTERVAL: &str = "5000";
/// Interval in ms for refreshing metadata, because topics may be created after the host starts.
const METADATA_INTERVAL: &str = "10000";
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

pub type PartitionKey = (String, i32);

/// A change of the assignment by a rebalance. Changes are kept in the order in which they happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssignmentChange {
    Assigned(PartitionKey),
    Revoked(PartitionKey),
}

pub struct Group {
    consumer: BaseConsumer<Membership>,
}

struct Membership {
    changes: Mutex<Vec<AssignmentChange>>,
}

/// A position to commit: the next offset to read, and the intent in its metadata note.
#[derive(Debug, Clone)]
pub struct Position {
    pub topic: String,
    pub partition: i32,
    pub next: i64,
    pub intent: Option<i64>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Last offset of the batch that was begun.
    intent: i64,
}

impl Group {
    /// Joins the group in the background.
    ///
    /// # Errors
    /// Fails if the settings are invalid.
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
            // Limit on messages fetched ahead, in addition to those that wait to be stored.
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

    /// Returns the error after which the consumer can never read again, if there is one.
    pub fn fatal_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.consumer.client().fatal_error()
    }

    /// Returns the changes of the assignment since the last call. Rebalances happen only while
    /// polling.
    pub fn changes(&self) -> Vec<AssignmentChange> {
        std::mem::take(&mut *self.consumer.context().lock())
    }

    /// Returns the intents stored with the committed offsets of partitions.
    ///
    /// # Errors
    /// Fails if the group's coordinator does not answer. No message may be stored while
    /// the intent is unknown.
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

    /// Commits positions and waits until the group has stored them. A member that lost its
    /// partitions is refused here.
    ///
    /// # Errors
    /// Fails if the group did not accept the positions.
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

    /// Pauses all assigned partitions.
    ///
    /// # Errors
    /// Fails if librdkafka no longer knows the partitions.
    pub fn pause(&self) -> KafkaResult<()> {
        self.consumer.pause(&self.consumer.assignment()?)
    }

    /// Resumes all assigned partitions.
    ///
    /// # Errors
    /// Fails if librdkafka no longer knows the partitions.
    pub fn resume(&self) -> KafkaResult<()> {
        self.consumer.resume(&self.consumer.assignment()?)
    }
}

pub(super) fn note(intent: i64) -> String {
    // Serializing one number cannot fail.
    serde_json::to_string(&Note { intent }).unwrap_or_default()
}

/// Parses a metadata note. A note in another format means that there is no intent, because another
/// tool moved the offsets on purpose.
pub(super) fn parse_intent(metadata: &str) -> Option<i64> {
    serde_json::from_str(metadata)
        .ok()
        .map(|Note { intent }| intent)
}

impl Membership {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<AssignmentChange>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, partitions: &TopicPartitionList, change: fn(PartitionKey) -> AssignmentChange) {
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
        tracing::warn!(target: "kafka", %error, reason, "the Kafka consumer reports an error; librdkafka tries again");
    }

    fn stats(&self, statistics: Statistics) {
        for (topic, found) in &statistics.topics {
            for (id, partition) in &found.partitions {
                // The lag is −1 until the first commit is known, and for partitions of other
                // members.
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
            Rebalance::Assign(partitions) => self.note(partitions, AssignmentChange::Assigned),
            Rebalance::Revoke(partitions) => self.note(partitions, AssignmentChange::Revoked),
            Rebalance::Error(error) => {
                tracing::warn!(target: "kafka", %error, "could not rebalance the consumer group; waiting for the next rebalance")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_survives_a_round_trip_and_other_notes_hold_no_intent() {
        assert_eq!(note(41), r#"{"intent":41}"#);
        assert_eq!(parse_intent(&note(41)), Some(41));
        for other in ["", "moved by hand", "{}", r#"{"intent":"x"}"#] {
            assert_eq!(parse_intent(other), None, "{other}");
        }
    }
}
