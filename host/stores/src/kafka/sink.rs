//! The event sink of the real stack: drains the spool into the topic `events`, keyed by user.

use super::message;
use super::{Producer, STORE, Topic};
use crate::ports::{EventSink, StoreResult};
use async_trait::async_trait;
use nova_model::event::AcceptedEvent;

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

    /// Writes repeated events too. Only the consumer can remove them, because only it sees events
    /// that arrived by other routes.
    async fn write(&self, events: &[AcceptedEvent], _through: i64) -> StoreResult<u64> {
        let messages = events.iter().map(message::event);
        self.producer
            .send("write_events", &self.topic, messages)
            .await?;
        Ok(events.len() as u64)
    }

    /// Always 0: a broker does not remember the position of a spool. The consumer recognises
    /// events that are sent again.
    async fn written_through(&self) -> StoreResult<i64> {
        Ok(0)
    }

    async fn ping(&self) -> StoreResult<()> {
        self.producer.ping(&self.topic).await
    }
}
