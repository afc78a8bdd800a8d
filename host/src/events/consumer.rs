//! Final deduplication of events: reads the topic `events` and stores each event in ClickHouse,
//! once in every aggregate.
//!
//! Two rules ensure this. First, a batch that was begun is repeated exactly, under the same
//! token. A crash may have left the batch in the raw table but not in the aggregates, and only
//! an insert with the same token repairs that. Second, each event is looked up before it is
//! stored, because a message that was produced twice has another offset and therefore another
//! token.

use super::drain::{Counted, invalidating};
use futures::StreamExt as _;
use nova_model::event::AcceptedEvent;
use nova_stores::clickhouse::{ClickHouseStore, PartitionRun};
use nova_stores::kafka::message::{Undecodable, decode_event};
use nova_stores::kafka::reader::BatchHandler;
use nova_stores::kafka::{Batch, Subscription, Topic};
use nova_stores::ports::StoreResult;
use nova_support::failpoint;
use std::time::Duration;

pub const GROUP: &str = "nova-events";
/// Time that the first batch of a round waits for more messages. Each insert creates a part in
/// the raw table and in every table behind it, and each partition inserts separately. The wait
/// limits this to about twenty inserts a second at any event rate. It is most of an event's
/// latency.
const LINGER: Duration = Duration::from_millis(700);
/// Maximum messages of one partition in a batch. Batches reach this size while the consumer
/// catches up after an outage.
const BATCH_MAX: usize = 4_000;
const ROUND_MAX: usize = 24_000;
/// Batches of different partitions in progress at once: one waits for its look-up while another
/// is inserted.
const PARALLEL: usize = 4;

pub struct Judge {
    store: ClickHouseStore,
    counted: Counted,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge").finish_non_exhaustive()
    }
}

pub fn subscription() -> Subscription {
    Subscription {
        group: GROUP,
        topics: vec![Topic::Events],
        dead_letters: Topic::EventsDeadLetters,
        linger: LINGER,
        batch_max: BATCH_MAX,
        round_max: ROUND_MAX,
    }
}

impl Judge {
    /// Calls `counted` once every aggregate has the events.
    pub fn new(store: ClickHouseStore, counted: Counted) -> Self {
        Self { store, counted }
    }

    /// Stores the new events of one batch and returns them.
    async fn judge<'a>(
        &self,
        batch: &'a Batch<AcceptedEvent>,
    ) -> StoreResult<Vec<&'a AcceptedEvent>> {
        let run = PartitionRun {
            partition: batch.partition,
            first_offset: batch.first,
            last_offset: batch.last,
        };
        let events: Vec<&AcceptedEvent> = batch.rows.iter().map(|row| &row.value).collect();
        let repeats = self.store.duplicates_of(run, &events).await?;
        let new: Vec<(i64, &AcceptedEvent)> = batch
            .rows
            .iter()
            .zip(repeats)
            .filter(|(_, repeat)| !repeat)
            .map(|(row, _)| (row.offset, &row.value))
            .collect();
        self.store.insert_events(run, &new, &batch.token()).await?;
        Ok(new.into_iter().map(|(_, event)| event).collect())
    }
}

impl BatchHandler for Judge {
    type Item = AcceptedEvent;

    fn decode(
        &self,
        _topic: &str,
        payload: Option<&[u8]>,
    ) -> Result<Option<AcceptedEvent>, Undecodable> {
        decode_event(payload).map(Some)
    }

    async fn store(&self, batches: &[Batch<AcceptedEvent>]) -> StoreResult<()> {
        failpoint::hit("after_intent");
        let judging: Vec<_> = batches.iter().map(|batch| self.judge(batch)).collect();
        // Finishes every batch even if one fails, because a cancelled insert gains nothing.
        let judged: Vec<StoreResult<Vec<&AcceptedEvent>>> = futures::stream::iter(judging)
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let judged = judged.into_iter().collect::<StoreResult<Vec<_>>>()?;
        failpoint::hit("after_insert");
        (self.counted)(invalidating(judged.into_iter().flatten()));
        Ok(())
    }
}
