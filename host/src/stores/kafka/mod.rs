//! Apache Kafka: where accepted events, exposures and PostgreSQL's changes wait for their consumers.
//!
//! `message` is the contract of what lies in the topics, `topics` which there are, `producer` the way
//! in (`sink` and `exposures` on top of it), `reader` the way out in batches that can be repeated exactly.

pub mod batch;
pub mod dead_letter;
pub mod exposures;
mod group;
mod held;
pub mod lag;
mod linger;
pub mod message;
pub mod producer;
pub mod reader;
pub mod sink;
pub mod topics;

pub use batch::{Batch, Row};
pub use producer::Producer;
pub use reader::Reader;
pub use sink::KafkaSink;
pub use topics::Topic;

use super::StoreError;
use rdkafka::ClientConfig;

/// The name used in `degraded`, `/health` and metrics.
pub const STORE: &str = "kafka";

/// Where the brokers are, and under which names this community's topics and groups live.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KafkaSettings {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// Put before every topic and group, so that two communities can share brokers. Default empty.
    pub prefix: String,
    /// Names this host among the members of a group. A host that comes back within the session's timeout then takes its
    /// partitions over at once, also after a crash; without a name the group waits for the dead member. Must be unique.
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
            // A broker that restarts is back within seconds; the default backs off to 10 s.
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

/// librdkafka's log lines and errors, in the host's log.
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
