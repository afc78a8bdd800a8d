//! The lag of a consumer group, measured without joining the group.

use super::KafkaSettings;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde::Serialize;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for reading the first waiting message of each partition; a message that has not
/// arrived by then is left out of the estimate.
const READ: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Behind {
    /// Number of messages that are not committed.
    pub messages: u64,
    /// Timestamp of the oldest of them, as far as it could be read.
    pub oldest_ms: Option<u64>,
}

/// Measures the lag of a group on one topic. It blocks for several round trips.
///
/// # Errors
/// Fails if the brokers do not answer or do not know the topic.
pub fn behind(settings: &KafkaSettings, group: &str, topic: &str) -> anyhow::Result<Behind> {
    let consumer: BaseConsumer = settings
        .client()
        .set("group.id", settings.group(group))
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let mut partitions = TopicPartitionList::new();
    for partition in metadata
        .topics()
        .iter()
        .flat_map(|topic| topic.partitions())
    {
        partitions.add_partition(topic, partition.id());
    }
    anyhow::ensure!(
        partitions.count() > 0,
        "no topic {topic}; `nova migrate` creates it"
    );
    let committed = consumer.committed_offsets(partitions, TIMEOUT)?;
    let mut waiting = TopicPartitionList::new();
    let mut behind = Behind::default();
    for at in committed.elements() {
        let (low, high) = consumer.fetch_watermarks(topic, at.partition(), TIMEOUT)?;
        let next = match at.offset() {
            Offset::Offset(next) => next.max(low),
            _ => low,
        };
        if next < high {
            behind.messages += (high - next) as u64;
            waiting.add_partition_offset(topic, at.partition(), Offset::Offset(next))?;
        }
    }
    if behind.messages > 0 {
        consumer.assign(&waiting)?;
        behind.oldest_ms = oldest(&consumer, waiting.count());
    }
    Ok(behind)
}

fn oldest(consumer: &BaseConsumer, partitions: usize) -> Option<u64> {
    let until = Instant::now() + READ;
    let (mut read, mut oldest_ms) = (std::collections::BTreeSet::new(), None::<u64>);
    while read.len() < partitions && Instant::now() < until {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100))
            && read.insert(message.partition())
            && let Some(at_ms) = message.timestamp().to_millis()
        {
            let at_ms = at_ms.max(0) as u64;
            oldest_ms = Some(oldest_ms.map_or(at_ms, |oldest| oldest.min(at_ms)));
        }
    }
    oldest_ms
}
