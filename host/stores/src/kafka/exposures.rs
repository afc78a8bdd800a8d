//! The exposure store of the real stack: writes exposures to the topic `served` and reads them
//! from the store that its consumer fills.

use super::{Producer, Topic, message};
use crate::ports::{ExposureStore, StoreResult};
use async_trait::async_trait;
use nova_model::daily::DailyCounts;
use nova_model::exposure::{Exposure, VariationCount};
use nova_model::time::UnixMs;
use std::sync::Arc;

pub struct KafkaExposures {
    producer: Producer,
    topic: String,
    reads: Arc<dyn ExposureStore>,
}

impl std::fmt::Debug for KafkaExposures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaExposures")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl KafkaExposures {
    pub fn new(producer: Producer, reads: Arc<dyn ExposureStore>) -> Self {
        let topic = producer.settings().topic(Topic::Served);
        Self {
            producer,
            topic,
            reads,
        }
    }
}

#[async_trait]
impl ExposureStore for KafkaExposures {
    async fn record(&self, exposures: &[Exposure]) -> StoreResult<()> {
        let messages = exposures.iter().map(message::exposure);
        self.producer
            .send("record_exposures", &self.topic, messages)
            .await
    }

    async fn variation_counts(&self, experiment: &str) -> StoreResult<Vec<VariationCount>> {
        self.reads.variation_counts(experiment).await
    }

    async fn active_viewers(&self, since_ms: UnixMs, limit: u32) -> StoreResult<Vec<u64>> {
        self.reads.active_viewers(since_ms, limit).await
    }

    async fn daily_metrics(&self, day_start_ms: UnixMs) -> StoreResult<DailyCounts> {
        self.reads.daily_metrics(day_start_ms).await
    }
}
