//! The insertion of accepted events as raw rows, from which materialized views fill the aggregates.

use super::{ClickHouseStore, to_ticks};
use crate::ports::StoreResult;
use clickhouse::Row;
use nova_model::event::{AcceptedEvent, Action};
use serde::Serialize;
use uuid::Uuid;

/// A range of messages of one partition of the broker. One insert stores it, with the same content
/// on the first attempt and on every retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionRun {
    pub partition: i32,
    pub first_offset: i64,
    /// Offset of the last message, included.
    pub last_offset: i64,
}

/// The number of this origin in `events.origin`.
const ORIGIN_KAFKA: i8 = 1;

/// A row of `events`, with times in milliseconds. `clickhouse/0002_events.sql` describes each
/// column.
#[derive(Debug, Clone, PartialEq, Eq, Row, Serialize)]
pub struct EventRow {
    #[serde(with = "clickhouse::serde::uuid")]
    pub event_id: Uuid,
    pub event_time: i64,
    pub accepted_at: i64,
    pub user_id: u64,
    pub post_id: u64,
    pub author_id: u64,
    pub action: i8,
    pub dwell_ms: Option<u32>,
    pub device: String,
    pub app_ver: String,
    #[serde(with = "clickhouse::serde::uuid::option")]
    pub ranking_id: Option<Uuid>,
    pub times: u64,
    pub origin: i8,
    pub kafka_partition: i32,
    pub kafka_offset: i64,
    pub import_id: String,
}

impl EventRow {
    pub(super) fn new(event: &AcceptedEvent, partition: i32, offset: i64) -> Self {
        Self {
            event_id: event.event_id,
            event_time: to_ticks(event.event_time_ms),
            accepted_at: to_ticks(event.accepted_ms),
            user_id: event.user_id,
            post_id: event.post_id,
            author_id: event.author_id,
            action: action_number(event.action),
            dwell_ms: event.dwell_ms,
            device: event.device.clone(),
            app_ver: event.app_ver.clone(),
            ranking_id: event.ranking_id,
            times: 1,
            origin: ORIGIN_KAFKA,
            kafka_partition: partition,
            kafka_offset: offset,
            import_id: String::new(),
        }
    }
}

/// The number of each action in `events.action`.
pub(super) fn action_number(action: Action) -> i8 {
    match action {
        Action::Impression => 1,
        Action::View => 2,
        Action::Like => 3,
        Action::Comment => 4,
        Action::Share => 5,
        Action::Dwell => 6,
    }
}

impl ClickHouseStore {
    /// Stores events of one run with their offsets. When this returns, they count in every
    /// aggregate. Repeating the call with the same events and token stores and counts
    /// nothing twice, and completes what a failed attempt left half done. `token` must
    /// identify exactly this run.
    ///
    /// # Errors
    /// Fails if the server fails or refuses. Repeat the same call until it succeeds.
    pub async fn insert_events(
        &self,
        run: PartitionRun,
        events: &[(i64, &AcceptedEvent)],
        token: &str,
    ) -> StoreResult<()> {
        let row =
            |(offset, event): &(i64, &AcceptedEvent)| EventRow::new(event, run.partition, *offset);
        let rows: Vec<EventRow> = events.iter().map(row).collect();
        let insert = self.insert("events", &rows, Some(token));
        self.work_guard.run("insert_events", insert).await
    }
}
