//! The look-up of events in a batch that are already stored. It lets the consumer decide which
//! events are duplicates.

use super::events::action_number;
use super::{ClickHouseStore, PartitionRun, failure, to_ticks};
use crate::guard::Failure;
use crate::ports::StoreResult;
use clickhouse::Row;
use clickhouse::query::Query;
use nova_model::event::AcceptedEvent;
use nova_model::time::HOUR_MS;
use serde::Deserialize;
use std::collections::{BTreeSet, HashSet};
use uuid::Uuid;

/// Look-back for event ids, in ms. An event is at most 24 h old when it is accepted; one more
/// hour covers the time that it waited in the spool.
const LOOK_BACK_MS: u64 = 25 * HOUR_MS;

/// Maximum number of events per query. ClickHouse accepts 128 KiB in one parameter, and the halves
/// of event ids have up to 20 digits.
const EVENTS_PER_QUERY: usize = 5_000;

/// Finds known idempotency keys by minute and user, which is the order of the table, because the
/// keys of a batch lie in a few minutes. The condition on times repeats this for the partitions.
/// The rows found have a user and a post of the batch; the host decides which events are
/// repeats, because ClickHouse takes twice as long to parse a list of whole keys.
const KNOWN_KEYS: &str = "
SELECT DISTINCT user_id, post_id, toInt8(action) AS action, toUnixTimestamp(event_time) AS second
FROM events
WHERE event_time BETWEEN fromUnixTimestamp64Milli({oldest:Int64}, 'UTC') AND fromUnixTimestamp64Milli({newest:Int64}, 'UTC')
  AND toStartOfMinute(event_time) IN {minutes:Array(DateTime('UTC'))}
  AND user_id IN {users:Array(UInt64)}
  AND post_id IN {posts:Array(UInt64)}
  AND origin = 'kafka'
  AND NOT (kafka_partition = {partition:Int32} AND kafka_offset BETWEEN {first_offset:Int64} AND {last_offset:Int64}
    AND accepted_at BETWEEN fromUnixTimestamp64Milli({own_oldest:Int64}, 'UTC') AND fromUnixTimestamp64Milli({own_newest:Int64}, 'UTC'))";

/// Finds known event ids by the first half of the id, which takes half the time to read.
const KNOWN_IDS: &str = "
SELECT DISTINCT user_id, event_id
FROM event_ids
WHERE user_id IN {users:Array(UInt64)}
  AND reinterpretAsUInt64(event_id) IN {ids:Array(UInt64)}
  AND event_time >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
  AND NOT (kafka_partition = {partition:Int32} AND kafka_offset BETWEEN {first_offset:Int64} AND {last_offset:Int64}
    AND event_time BETWEEN fromUnixTimestamp64Milli({own_oldest:Int64}, 'UTC') AND fromUnixTimestamp64Milli({own_newest:Int64}, 'UTC'))";

/// The rows that a run itself stored, identified by its offsets and the times of its events. If
/// a topic was deleted and created again, its offsets start over; without the times, rows of
/// the old topic would count as the run's own.
#[derive(Debug, Clone, Copy)]
struct OwnRows {
    run: PartitionRun,
    accepted_ms: (u64, u64),
    event_time_ms: (u64, u64),
}

/// An idempotency key: user, post, action and the whole second of the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Row, Deserialize)]
struct KeyRow {
    user_id: u64,
    post_id: u64,
    action: i8,
    second: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Row, Deserialize)]
struct IdRow {
    user_id: u64,
    #[serde(with = "clickhouse::serde::uuid")]
    event_id: Uuid,
}

impl ClickHouseStore {
    /// Reports for each event of a run if it repeats a stored event or an earlier event of the
    /// same run. Rows that the run itself stored do not count. A run that is repeated, because
    /// it is unknown if it was stored, therefore gets the same result again.
    ///
    /// # Errors
    /// Fails if the server fails or refuses.
    pub async fn duplicates_of(
        &self,
        run: PartitionRun,
        events: &[&AcceptedEvent],
    ) -> StoreResult<Vec<bool>> {
        self.work_guard
            .run("duplicates_of", self.known_among(run, events))
            .await
    }

    async fn known_among(
        &self,
        run: PartitionRun,
        events: &[&AcceptedEvent],
    ) -> Result<Vec<bool>, Failure> {
        let own = OwnRows::new(run, events);
        let mut keys = HashSet::new();
        let mut ids = HashSet::new();
        for events in events.chunks(EVENTS_PER_QUERY) {
            let (known_keys, known_ids) =
                tokio::try_join!(self.known_keys(own, events), self.known_ids(own, events))?;
            keys.extend(known_keys);
            ids.extend(known_ids);
        }
        let is_repeat = |event: &&AcceptedEvent| {
            let (key, id) = (key_of(event), id_of(event));
            let is_known = keys.contains(&key) || ids.contains(&id);
            if !is_known {
                keys.insert(key);
                ids.insert(id);
            }
            is_known
        };
        Ok(events.iter().map(is_repeat).collect())
    }

    async fn known_keys(
        &self,
        own: OwnRows,
        events: &[&AcceptedEvent],
    ) -> Result<Vec<KeyRow>, Failure> {
        let seconds = events.iter().map(|event| key_of(event).second);
        let minutes: BTreeSet<u32> = seconds.map(|second| second / 60 * 60).collect();
        let posts: BTreeSet<u64> = events.iter().map(|event| event.post_id).collect();
        let times = events.iter().map(|event| event.event_time_ms);
        // Whole seconds from the oldest event to the newest.
        let oldest_ms = times.clone().min().unwrap_or(0) / 1000 * 1000;
        let newest_ms = times.max().unwrap_or(0) / 1000 * 1000 + 999;
        let query = own
            .bind(self.worker.query(KNOWN_KEYS), own.accepted_ms)
            .param("oldest", to_ticks(oldest_ms))
            .param("newest", to_ticks(newest_ms))
            .param("minutes", minutes)
            .param("users", users_of(events))
            .param("posts", posts);
        query.fetch_all().await.map_err(failure)
    }

    async fn known_ids(
        &self,
        own: OwnRows,
        events: &[&AcceptedEvent],
    ) -> Result<Vec<IdRow>, Failure> {
        let first_half = |event: &&AcceptedEvent| event.event_id.as_u64_pair().0;
        let ids: Vec<u64> = events.iter().map(first_half).collect();
        let oldest_ms = events.iter().map(|event| event.event_time_ms).min();
        let since_ms = oldest_ms.unwrap_or(0).saturating_sub(LOOK_BACK_MS);
        let query = own
            .bind(self.worker.query(KNOWN_IDS), own.event_time_ms)
            .param("since", to_ticks(since_ms))
            .param("users", users_of(events))
            .param("ids", ids);
        query.fetch_all().await.map_err(failure)
    }
}

impl OwnRows {
    fn new(run: PartitionRun, events: &[&AcceptedEvent]) -> Self {
        Self {
            run,
            accepted_ms: range(events.iter().map(|event| event.accepted_ms)),
            event_time_ms: range(events.iter().map(|event| event.event_time_ms)),
        }
    }

    fn bind(self, query: Query, (oldest_ms, newest_ms): (u64, u64)) -> Query {
        query
            .param("partition", self.run.partition)
            .param("first_offset", self.run.first_offset)
            .param("last_offset", self.run.last_offset)
            .param("own_oldest", to_ticks(oldest_ms))
            .param("own_newest", to_ticks(newest_ms))
    }
}

fn range(times_ms: impl Iterator<Item = u64> + Clone) -> (u64, u64) {
    let (oldest, newest) = (times_ms.clone().min(), times_ms.max());
    (oldest.unwrap_or(0), newest.unwrap_or(0))
}

fn users_of(events: &[&AcceptedEvent]) -> BTreeSet<u64> {
    events.iter().map(|event| event.user_id).collect()
}

fn key_of(event: &AcceptedEvent) -> KeyRow {
    KeyRow {
        user_id: event.user_id,
        post_id: event.post_id,
        action: action_number(event.action),
        second: u32::try_from(event.event_time_ms / 1000).unwrap_or(u32::MAX),
    }
}

fn id_of(event: &AcceptedEvent) -> IdRow {
    IdRow {
        user_id: event.user_id,
        event_id: event.event_id,
    }
}
