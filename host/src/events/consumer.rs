//! The judge of duplicates: from the topic `events` into ClickHouse, each event once in every aggregate.
//!
//! Two things are needed for that. A batch that was begun is repeated exactly, under the same token, because a crash
//! may have left it in the raw table and not in the aggregates, and only the same token heals that. And each event is
//! looked up before it is stored, because a message that was sent twice has another offset and so another token.

use super::drain::{Counted, overtaking};
use crate::failpoint;
use crate::stores::clickhouse::{ClickHouseStore, PartitionRun};
use crate::stores::kafka::message::{Undecodable, decode_event};
use crate::stores::kafka::reader::{BatchHandler, Subscription};
use crate::stores::kafka::{Batch, Topic};
use crate::stores::{AcceptedEvent, StoreResult};
use futures::StreamExt as _;
use std::time::Duration;

pub const GROUP: &str = "nova-events";
/// Each insert is a part of the raw table and of every table behind it, and each partition has its own insert: the
/// waiting keeps them to some twenty a second, however many events there are, and is most of an event's way.
const LINGER: Duration = Duration::from_millis(700);
/// What catches up after an outage takes this many of one partition at once.
const BATCH_MAX: usize = 4_000;
const ROUND_MAX: usize = 24_000;
/// Batches of different partitions on their way at once: one waits for its look-up while another is inserted.
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
    /// `counted` is told once every aggregate has the events.
    pub fn new(store: ClickHouseStore, counted: Counted) -> Self {
        Self { store, counted }
    }

    /// Stores what is new in one batch, and returns it.
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
        // All of them, though one fails: an insert that is dropped half way helps nobody.
        let judged: Vec<StoreResult<Vec<&AcceptedEvent>>> = futures::stream::iter(judging)
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let judged = judged.into_iter().collect::<StoreResult<Vec<_>>>()?;
        failpoint::hit("after_insert");
        (self.counted)(overtaking(judged.into_iter().flatten()));
        Ok(())
    }
}
