//! The consumer of the topics `cdc.*`: writes changes to ClickHouse, then invalidates the
//! caches that they make stale. The order matters, because a feed that is fetched again after
//! an invalidation must contain the change.

use super::change::{RowChange, Rows};
use super::envelope;
use super::invalidation::{self, Invalidator};
use nova_model::cdc::Table;
use nova_stores::clickhouse::ClickHouseStore;
use nova_stores::kafka::message::Undecodable;
use nova_stores::kafka::reader::BatchHandler;
use nova_stores::kafka::{Batch, KafkaSettings, Subscription, Topic};
use nova_stores::ports::StoreResult;
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub const GROUP: &str = "nova-cdc";
/// Time that the first batch of a round waits for more. A new post is in its followers' next
/// feed after this wait, the insert and Debezium's own half second.
const LINGER: Duration = Duration::from_millis(200);
/// Batches are large because a first snapshot has millions of rows.
const BATCH_MAX: usize = 10_000;
const ROUND_MAX: usize = 50_000;

/// Time for which the lag of the last stored change counts as the lag of the capture.
const STORED_LAG_HOLDS: Duration = Duration::from_secs(60);

pub struct Capture {
    store: ClickHouseStore,
    invalidator: Invalidator,
    /// Each topic with its table.
    tables: Vec<(String, Table)>,
    /// The last stored change of each table: when it was stored, and its delay since its commit, in
    /// seconds.
    stored: Mutex<BTreeMap<&'static str, (Instant, f64)>>,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").finish_non_exhaustive()
    }
}

pub fn subscription() -> Subscription {
    Subscription {
        group: GROUP,
        topics: Topic::CDC.to_vec(),
        dead_letters: Topic::CdcDeadLetters,
        linger: LINGER,
        batch_max: BATCH_MAX,
        round_max: ROUND_MAX,
    }
}

pub(super) fn topic_of(table: Table) -> Topic {
    match table {
        Table::Users => Topic::CdcUsers,
        Table::Posts => Topic::CdcPosts,
        Table::Follows => Topic::CdcFollows,
        Table::Comments => Topic::CdcComments,
        Table::Likes => Topic::CdcLikes,
    }
}

impl Capture {
    pub fn new(store: ClickHouseStore, invalidator: Invalidator, settings: &KafkaSettings) -> Self {
        let tables = Table::ALL.map(|table| (settings.topic(topic_of(table)), table));
        Self {
            store,
            invalidator,
            tables: tables.into(),
            stored: Mutex::default(),
        }
    }

    fn observe<'a>(&self, changes: impl Iterator<Item = &'a RowChange>, ok: bool) {
        let now_ms = unix_ms();
        let mut seen: BTreeMap<&str, (Table, u64, u64)> = BTreeMap::new();
        for change in changes {
            let table = change.table();
            let (_, number, newest_ms) = seen.entry(table.name()).or_insert((table, 0, 0));
            *number += 1;
            *newest_ms = (*newest_ms).max(change.committed_ms());
        }
        for (table, number, newest_ms) in seen.into_values() {
            count(table, if ok { "ok" } else { "error" }, number);
            if ok {
                let lag_s = now_ms.saturating_sub(newest_ms) as f64 / 1_000.0;
                self.stored().insert(table.name(), (Instant::now(), lag_s));
            }
        }
    }

    /// Returns the lag of the last stored change in seconds, or 0 if nothing was stored
    /// recently. It includes Debezium's share of the delay. The age of the messages that wait
    /// in the topic does not.
    fn lag_stored(&self, table: Table) -> f64 {
        let stored = self.stored().get(table.name()).copied();
        let recent = stored.filter(|(at, _)| at.elapsed() < STORED_LAG_HOLDS);
        recent.map_or(0.0, |(_, lag_s)| lag_s)
    }

    fn stored(&self) -> MutexGuard<'_, BTreeMap<&'static str, (Instant, f64)>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self, rows: &Rows) -> StoreResult<()> {
        // The inserts run concurrently, because five short inserts in sequence would be most of
        // a change's latency.
        tokio::try_join!(
            self.store.insert_cdc(&rows.users),
            self.store.insert_cdc(&rows.posts),
            self.store.insert_cdc(&rows.follows),
            self.store.insert_cdc(&rows.comments),
            self.store.insert_cdc(&rows.likes),
        )?;
        Ok(())
    }
}

impl BatchHandler for Capture {
    type Item = RowChange;

    fn decode(
        &self,
        topic: &str,
        payload: Option<&[u8]>,
    ) -> Result<Option<RowChange>, Undecodable> {
        let table = self.tables.iter().find(|(name, _)| name == topic);
        let (_, table) = table.ok_or_else(|| {
            Undecodable::Invalid(format!("topic {topic} belongs to no captured table"))
        })?;
        let decoded = envelope::decode(*table, payload);
        if decoded.is_err() {
            count(*table, "undecodable", 1);
        }
        decoded
    }

    fn behind(&self, by_topic: &BTreeMap<&str, f64>) {
        for (topic, table) in &self.tables {
            let labels = [table.name()];
            match by_topic.get(topic.as_str()) {
                Some(waiting) => METRICS
                    .cdc_lag_seconds
                    .with_label_values(&labels)
                    .set(self.lag_stored(*table).max(*waiting)),
                // Other hosts read the partitions of this topic. The series does not exist if
                // it was never set.
                None => drop(METRICS.cdc_lag_seconds.remove_label_values(&labels)),
            }
        }
    }

    async fn store(&self, batches: &[Batch<RowChange>]) -> StoreResult<()> {
        let changes = || {
            let rows = batches.iter().flat_map(|batch| &batch.rows);
            rows.map(|row| &row.value)
        };
        let written = self.write(&Rows::from_changes(changes())).await;
        self.observe(changes(), written.is_ok());
        written?;
        let invalidated = changes().flat_map(invalidation::of_change).collect();
        self.invalidator.apply(&invalidated).await;
        Ok(())
    }
}

fn count(table: Table, status: &str, changes: u64) {
    METRICS
        .cdc_events_consumed_total
        .with_label_values(&[table.name(), status])
        .inc_by(changes);
}
