//! The Apache Kafka adapter. Accepted events, exposures and changes from PostgreSQL wait in Kafka
//! for their consumers.
//!
//! `message` defines the format of messages in the topics and `topics` lists the topics.
//! `producer` writes messages; `sink` and `exposures` are built on it. `reader` reads messages
//! in batches that can be repeated exactly.

pub mod batch;
pub mod dead_letter;
pub mod exposures;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;
mod group;
pub mod lag;
mod linger;
pub mod message;
mod partition_buffer;
pub mod producer;
pub mod reader;
pub mod sink;
mod subscription;
pub mod topics;

pub use batch::{Batch, Row};
pub use producer::Producer;
pub use reader::Reader;
pub use sink::KafkaSink;
pub use subscription::Subscription;
pub use topics::Topic;

use crate::ports::StoreError;
use rdkafka::ClientConfig;

/// The name used in `degraded`, `/health` and metrics.
pub const STORE: &str = "kafka";

/// The addresses of the brokers, and the names under which this community's topics and groups
/// exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KafkaSettings {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// Prefix of every topic and group name, so that two communities can share brokers. Default:
    /// empty.
    pub prefix: String,
    /// Name of this host among the members of a group. It must be unique. A host that restarts
    /// within the session timeout then takes over its partitions at once, also after a crash.
    /// Without a name the group waits until the dead member times out.
    pub instance: Option<String>,
}

impl KafkaSettings {
    pub fn new(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            ..Self::default()
        }
    }

    pub fn topic(&self, topic: Topic) -> String {
        format!("{}{}", self.prefix, topic.name())
    }

    pub fn group(&self, group: &str) -> String {
        format!("{}{group}", self.prefix)
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "nova")
            // A broker that restarts is back within seconds, but the default backoff grows to 10 s.
            .set("reconnect.backoff.max.ms", "1000")
            .set("allow.auto.create.topics", "false");
        config
    }
}

fn error(query: &'static str, source: impl Into<anyhow::Error>) -> StoreError {
    StoreError {
        store: STORE,
        query,
        retryable: true,
        source: source.into(),
    }
}

/// Writes librdkafka's log lines and errors to the host's log.
fn log(level: rdkafka::config::RDKafkaLogLevel, facility: &str, line: &str) {
    use rdkafka::config::RDKafkaLogLevel as Level;
    match level {
        Level::Emerg | Level::Alert | Level::Critical | Level::Error | Level::Warning => {
            tracing::warn!(target: "kafka", facility, "{line}")
        }
        Level::Notice | Level::Info => tracing::info!(target: "kafka", facility, "{line}"),
        Level::Debug => tracing::debug!(target: "kafka", facility, "{line}"),
    }
}
