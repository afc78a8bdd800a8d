//! The list of topics, and their creation. `ops/kafka/topics` creates the same topics
//! with Kafka's own tools.

use super::KafkaSettings;
use anyhow::Context;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::MetadataTopic;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(15);
const LEADERS_WAIT: Duration = Duration::from_millis(100);
const DAY_MS: &str = "86400000";
const WEEK_MS: &str = "604800000";
/// Retention of dead letters: long enough for an operator to look at them.
const MONTH_MS: &str = "2592000000";
/// Leaves the replication factor to the broker's default, because one machine and three
/// need different ones.
const BROKER_DEFAULT: i32 = -1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    Events,
    Served,
    CdcUsers,
    CdcPosts,
    CdcFollows,
    CdcComments,
    CdcLikes,
    EventsDeadLetters,
    CdcDeadLetters,
}

impl Topic {
    pub const ALL: [Topic; 9] = [
        Topic::Events,
        Topic::Served,
        Topic::CdcUsers,
        Topic::CdcPosts,
        Topic::CdcFollows,
        Topic::CdcComments,
        Topic::CdcLikes,
        Topic::EventsDeadLetters,
        Topic::CdcDeadLetters,
    ];

    pub const CDC: [Topic; 5] = [
        Topic::CdcUsers,
        Topic::CdcPosts,
        Topic::CdcFollows,
        Topic::CdcComments,
        Topic::CdcLikes,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Topic::Events => "events",
            Topic::Served => "served",
            Topic::CdcUsers => "cdc.users",
            Topic::CdcPosts => "cdc.posts",
            Topic::CdcFollows => "cdc.follows",
            Topic::CdcComments => "cdc.comments",
            Topic::CdcLikes => "cdc.likes",
            Topic::EventsDeadLetters => "events_dlq",
            Topic::CdcDeadLetters => "cdc_dlq",
        }
    }

    /// Number of partitions. It must not change later, because it decides which partition a key
    /// is in, and so the order of messages with one key.
    pub fn partitions(self) -> i32 {
        match self {
            Topic::Events | Topic::Served => 12,
            Topic::EventsDeadLetters | Topic::CdcDeadLetters => 1,
            _ => 6,
        }
    }

    fn retention_ms(self) -> &'static str {
        match self {
            Topic::EventsDeadLetters | Topic::CdcDeadLetters => MONTH_MS,
            _ => WEEK_MS,
        }
    }
}

/// Creates the topics that are missing, and returns their names.
///
/// # Errors
/// Fails if the brokers cannot be reached or refuse, or if a topic exists with another
/// number of partitions.
pub async fn create(settings: &KafkaSettings) -> anyhow::Result<Vec<String>> {
    let names = Topic::ALL.map(|topic| (settings.topic(topic), topic));
    let admin: AdminClient<DefaultClientContext> = settings.client().create()?;
    let topics = names.each_ref().map(|(name, topic)| {
        NewTopic::new(
            name,
            topic.partitions(),
            TopicReplication::Fixed(BROKER_DEFAULT),
        )
        .set("retention.ms", topic.retention_ms())
        .set("segment.ms", DAY_MS)
        .set("cleanup.policy", "delete")
    });
    let options = AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT));
    let outcomes = admin
        .create_topics(&topics, &options)
        .await
        .with_context(|| format!("could not create topics at {}", settings.brokers))?;
    let mut made = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(name) => made.push(name),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => anyhow::bail!("could not create topic {name}: {code}"),
        }
    }
    for topic in Topic::ALL {
        await_partitions(&admin, &settings.topic(topic), topic.partitions()).await?;
    }
    Ok(made)
}

/// Waits until every partition of a topic has a leader. A topic that was just created has none
/// yet, so using it at once would fail.
async fn await_partitions(
    admin: &AdminClient<DefaultClientContext>,
    name: &str,
    partitions: i32,
) -> anyhow::Result<()> {
    let until = Instant::now() + TIMEOUT;
    loop {
        // This blocks for one round trip, which is acceptable because it runs in a command that
        // does nothing else meanwhile.
        let metadata = admin.inner().fetch_metadata(Some(name), TIMEOUT)?;
        let found = metadata.topics().first();
        let led = |topic: &MetadataTopic| {
            topic.error().is_none() && topic.partitions().iter().all(|p| p.error().is_none())
        };
        if let Some(topic) = found.filter(|topic| led(topic)) {
            let found = topic.partitions().len();
            anyhow::ensure!(
                found == partitions as usize,
                "topic {name} has {found} partitions and needs {partitions}; recreate it"
            );
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < until, "topic {name} has no leaders; retry");
        tokio::time::sleep(LEADERS_WAIT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_has_a_unique_name_under_the_prefix() {
        let settings = KafkaSettings {
            prefix: "t1.".to_owned(),
            ..KafkaSettings::default()
        };
        let names: std::collections::BTreeSet<String> = Topic::ALL
            .map(|topic| settings.topic(topic))
            .into_iter()
            .collect();
        assert_eq!(names.len(), Topic::ALL.len());
        assert!(names.iter().all(|name| name.starts_with("t1.")));
    }
}
