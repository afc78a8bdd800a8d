//! Where the spool drains to: the topic `events`, keyed by user.

use super::message;
use super::{Producer, STORE, Topic};
use crate::stores::{AcceptedEvent, EventSink, StoreResult};
use async_trait::async_trait;

#[derive(Debug, Clone)]
pub struct KafkaSink {
    producer: Producer,
    topic: String,
}

impl KafkaSink {
    pub fn new(producer: Producer) -> Self {
        let topic = producer.settings().topic(Topic::Events);
        Self { producer, topic }
    }
}

#[async_trait]
impl EventSink for KafkaSink {
    fn name(&self) -> &'static str {
        STORE
    }

    /// Repeats are left to the consumer: only it sees what came by other ways.
    async fn write(&self, events: &[AcceptedEvent], _through: i64) -> StoreResult<u64> {
        let messages = events.iter().map(message::event);
        self.producer
            .send("write_events", &self.topic, messages)
            .await?;
        Ok(events.len() as u64)
    }

    /// A broker does not remember where a spool was; what is sent again is found by the consumer.
    async fn written_through(&self) -> StoreResult<i64> {
        Ok(0)
    }

    async fn ping(&self) -> StoreResult<()> {
        self.producer.ping(&self.topic).await
    }
}
