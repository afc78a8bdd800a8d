//! Consumer that writes exposures from the topic `served` to ClickHouse. It needs no
//! deduplication, because a ranking that is recorded again replaces itself.

use nova_model::exposure::Exposure;
use nova_stores::kafka::message::{Undecodable, decode_exposure};
use nova_stores::kafka::reader::BatchHandler;
use nova_stores::kafka::{Batch, Subscription, Topic};
use nova_stores::ports::{ExposureStore, StoreResult};
use std::sync::Arc;
use std::time::Duration;

pub const GROUP: &str = "nova-served";
/// Time that a batch waits for more exposures. No request waits for them, and a few large
/// inserts are cheaper than many small ones.
const LINGER: Duration = Duration::from_secs(1);
const BATCH_MAX: usize = 250;
/// Largest number of exposures read in one round. An exposure names every post of its ranking,
/// which takes tens of kilobytes.
const ROUND_MAX: usize = 1_000;

pub struct ServedRecorder {
    store: Arc<dyn ExposureStore>,
}

impl std::fmt::Debug for ServedRecorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedRecorder").finish_non_exhaustive()
    }
}

pub fn subscription() -> Subscription {
    Subscription {
        group: GROUP,
        topics: vec![Topic::Served],
        dead_letters: Topic::EventsDeadLetters,
        linger: LINGER,
        batch_max: BATCH_MAX,
        round_max: ROUND_MAX,
    }
}

impl ServedRecorder {
    pub fn new(store: Arc<dyn ExposureStore>) -> Self {
        Self { store }
    }
}

impl BatchHandler for ServedRecorder {
    type Item = Exposure;

    fn decode(
        &self,
        _topic: &str,
        payload: Option<&[u8]>,
    ) -> Result<Option<Exposure>, Undecodable> {
        decode_exposure(payload).map(Some)
    }

    async fn store(&self, batches: &[Batch<Exposure>]) -> StoreResult<()> {
        let rows = batches.iter().flat_map(|batch| &batch.rows);
        let exposures: Vec<Exposure> = rows.map(|row| row.value.clone()).collect();
        if exposures.is_empty() {
            return Ok(());
        }
        self.store.record(&exposures).await
    }
}
