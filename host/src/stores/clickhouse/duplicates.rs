//! Which events of a batch were here before: the look-up that makes the consumer the judge of
//! duplicates.

use super::events::action_number;
use super::{ClickHouseStore, PartitionRun, failure, to_ticks};
use crate::stores::guard::Failure;
use crate::stores::{AcceptedEvent, HOUR_MS, StoreResult};
use clickhouse::Row;
use serde::Deserialize;
use std::collections::{BTreeSet, HashSet};
use uuid::Uuid;

/// An event is at most 24 h old when it is accepted; an hour more for what waited in the spool.
const LOOK_BACK_MS: u64 = 25 * HOUR_MS;

/// ClickHouse takes 128 KiB in one parameter, and a key has up to 52 digits and signs.
const EVENTS_PER_QUERY: usize = 2_000;

/// By minute and user, which is the order of the table: the keys of a batch lie in a few minutes.
/// The times say the same again, for the partitions.
const KNOWN_KEYS: &str = "
SELECT DISTINCT user_id, post_id, toInt8(action) AS action, toUnixTimestamp(event_time) AS second
FROM events
WHERE event_time BETWEEN fromUnixTimestamp64Milli({oldest:Int64}, 'UTC') AND fromUnixTimestamp64Milli({newest:Int64}, 'UTC')
  AND toStartOfMinute(event_time) IN {minutes:Array(DateTime('UTC'))}
  AND user_id IN {users:Array(UInt64)}
  AND (user_id, post_id, toInt8(action), toUnixTimestamp(event_time)) IN {keys:Array(Tuple(UInt64, UInt64, Int8, UInt32))}
  AND origin = 'kafka'
  AND NOT (kafka_partition = {partition:Int32} AND kafka_offset BETWEEN {first_offset:Int64} AND {last_offset:Int64})";

const KNOWN_IDS: &str = "
SELECT DISTINCT user_id, event_id
FROM event_ids
WHERE user_id IN {users:Array(UInt64)}
  AND event_id IN {ids:Array(UUID)}
  AND event_time >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
  AND NOT (kafka_partition = {partition:Int32} AND kafka_offset BETWEEN {first_offset:Int64} AND {last_offset:Int64})";

/// The idempotency key: user, post, action and the whole second of the event.
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
    /// Which of a run's events are repeats: of what is stored, or of an earlier one of the same run.
    /// One for each event. Rows that the run itself stored do not count, so that a run that is
    /// repeated because nobody knows whether it was stored has the same answer again.
    ///
    /// # Errors
    /// When the server fails or refuses.
    pub async fn duplicates_of(
        &self,
        run: PartitionRun,
        events: &[&AcceptedEvent],
    ) -> StoreResult<Vec<bool>> {
        let guard = self.work_guard();
        guard
            .run("duplicates_of", self.known_among(run, events))
            .await
    }

    async fn known_among(
        &self,
        run: PartitionRun,
        events: &[&AcceptedEvent],
    ) -> Result<Vec<bool>, Failure> {
        let mut keys = HashSet::new();
        let mut ids = HashSet::new();
        for events in events.chunks(EVENTS_PER_QUERY) {
            let (known_keys, known_ids) =
                tokio::try_join!(self.known_keys(run, events), self.known_ids(run, events))?;
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
        run: PartitionRun,
        events: &[&AcceptedEvent],
    ) -> Result<Vec<KeyRow>, Failure> {
        let keys: Vec<_> = (events.iter().map(|event| key_of(event)))
            .map(|key| (key.user_id, key.post_id, key.action, key.second))
            .collect();
        let minutes: BTreeSet<u32> = keys.iter().map(|key| key.3 / 60 * 60).collect();
        let times = events.iter().map(|event| event.event_time_ms);
        // The whole seconds of the oldest and the newest.
        let oldest_ms = times.clone().min().unwrap_or(0) / 1000 * 1000;
        let newest_ms = times.max().unwrap_or(0) / 1000 * 1000 + 999;
        let query = of_run(self.worker.query(KNOWN_KEYS), run)
            .param("oldest", to_ticks(oldest_ms))
            .param("newest", to_ticks(newest_ms))
            .param("minutes", minutes)
            .param("users", users_of(events))
            .param("keys", keys);
        query.fetch_all().await.map_err(failure)
    }

    async fn known_ids(
        &self,
        run: PartitionRun,
        events: &[&AcceptedEvent],
    ) -> Result<Vec<IdRow>, Failure> {
        let ids: Vec<String> = events
            .iter()
            .map(|event| event.event_id.to_string())
            .collect();
        let oldest_ms = events.iter().map(|event| event.event_time_ms).min();
        let since_ms = oldest_ms.unwrap_or(0).saturating_sub(LOOK_BACK_MS);
        let query = of_run(self.worker.query(KNOWN_IDS), run)
            .param("since", to_ticks(since_ms))
            .param("users", users_of(events))
            .param("ids", ids);
        query.fetch_all().await.map_err(failure)
    }
}

fn of_run(query: clickhouse::query::Query, run: PartitionRun) -> clickhouse::query::Query {
    query
        .param("partition", run.partition)
        .param("first_offset", run.first_offset)
        .param("last_offset", run.last_offset)
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
