//! The embedded sink: stores each accepted event once, as a raw row and in the aggregates.

use super::EmbeddedStore;
use crate::ports::{EventSink, StoreResult};
use async_trait::async_trait;
use nova_model::event::idempotency_key;
use nova_model::event::{AcceptedEvent, Action};
use nova_model::time::UnixMs;
use serde::{Serialize, Serializer};
use sqlx::SqliteConnection;

/// Takes one JSON array for the whole batch, so that one prepared statement serves every batch
/// size. The aggregates below read only rows whose `event_row` is above ?1, which are those
/// inserted here.
const INSERT_RAW: &str = "
INSERT INTO events (idempotency_key, event_id, event_time_ms, accepted_ms, user_id, post_id,
                    author_id, action, dwell_ms, device, app_ver, ranking_id)
SELECT unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, value ->> 5,
       value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, unhex(value ->> 11)
FROM json_each(?1)
WHERE true
ON CONFLICT DO NOTHING";

const ADD_TO_POST_METRICS: &str = "
INSERT INTO post_metrics_1h (post_id, hour_ms, views, likes, comments, shares, dwell_ms_sum, exposures)
SELECT post_id, event_time_ms - event_time_ms % 3600000, sum(action = 'view'), sum(action = 'like'),
       sum(action = 'comment'), sum(action = 'share'), coalesce(sum(dwell_ms), 0),
       sum(action = 'impression')
FROM events
WHERE event_row > ?1
GROUP BY 1, 2
ON CONFLICT (post_id, hour_ms) DO UPDATE SET
    views = views + excluded.views,
    likes = likes + excluded.likes,
    comments = comments + excluded.comments,
    shares = shares + excluded.shares,
    dwell_ms_sum = dwell_ms_sum + excluded.dwell_ms_sum,
    exposures = exposures + excluded.exposures";

const ADD_TO_AFFINITIES: &str = "
INSERT INTO user_author_90d (user_id, author_id, day_ms, likes, comments, views)
SELECT user_id, author_id, event_time_ms - event_time_ms % 86400000, sum(action = 'like'),
       sum(action = 'comment'), sum(action = 'view')
FROM events
WHERE event_row > ?1 AND action IN ('like', 'comment', 'view')
GROUP BY 1, 2, 3
ON CONFLICT (user_id, author_id, day_ms) DO UPDATE SET
    likes = likes + excluded.likes,
    comments = comments + excluded.comments,
    views = views + excluded.views";

const ADVANCE: &str = "
INSERT INTO sink_state (id, written_through) VALUES (1, ?1)
ON CONFLICT (id) DO UPDATE SET written_through = max(written_through, excluded.written_through)";

/// Returns the first half of a sha256.
pub(crate) fn first_16(digest: &[u8]) -> [u8; 16] {
    let mut key = [0; 16];
    for (to, from) in key.iter_mut().zip(digest) {
        *to = *from;
    }
    key
}

/// 16 bytes that serialize as the hex digits that `unhex` takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hex16(pub [u8; 16]);

impl Serialize for Hex16 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A uuid's simple form has exactly this format and needs no allocation.
        let mut buffer = uuid::Uuid::encode_buffer();
        serializer.serialize_str(
            uuid::Uuid::from_bytes(self.0)
                .simple()
                .encode_lower(&mut buffer),
        )
    }
}

/// A raw row whose fields have the positions that [`INSERT_RAW`] reads.
#[derive(Debug, Serialize)]
struct RawRow<'a>(
    Hex16,
    Hex16,
    UnixMs,
    UnixMs,
    u64,
    u64,
    u64,
    Action,
    Option<u32>,
    &'a str,
    &'a str,
    Option<Hex16>,
);

fn raw_row(event: &AcceptedEvent) -> RawRow<'_> {
    RawRow(
        Hex16(idempotency_key(event)),
        Hex16(event.event_id.into_bytes()),
        event.event_time_ms,
        event.accepted_ms,
        event.user_id,
        event.post_id,
        event.author_id,
        event.action,
        event.dwell_ms,
        &event.device,
        &event.app_ver,
        event.ranking_id.map(|id| Hex16(id.into_bytes())),
    )
}

/// Returns the newest raw row. Rows inserted after it in the same transaction have higher
/// numbers.
pub(crate) async fn last_event_row(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce(max(event_row), 0) FROM events")
        .fetch_one(connection)
        .await
}

/// Adds the raw rows above `after_row` to both aggregates.
pub(crate) async fn aggregate_after(
    connection: &mut SqliteConnection,
    after_row: i64,
) -> Result<(), sqlx::Error> {
    for add in [ADD_TO_POST_METRICS, ADD_TO_AFFINITIES] {
        sqlx::query(add)
            .bind(after_row)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

#[async_trait]
impl EventSink for EmbeddedStore {
    fn name(&self) -> &'static str {
        super::STORE_NAME
    }

    async fn ping(&self) -> StoreResult<()> {
        self.answers().await
    }

    async fn write(&self, events: &[AcceptedEvent], through: i64) -> StoreResult<u64> {
        self.observed("write_events", async {
            let rows = serde_json::to_string(&events.iter().map(raw_row).collect::<Vec<_>>())?;
            let mut tx = self.writer().begin_with("BEGIN IMMEDIATE").await?;
            let before = last_event_row(&mut tx).await?;
            let new = sqlx::query(INSERT_RAW)
                .bind(rows)
                .execute(&mut *tx)
                .await?
                .rows_affected();
            if new > 0 {
                aggregate_after(&mut tx, before).await?;
            }
            sqlx::query(ADVANCE).bind(through).execute(&mut *tx).await?;
            tx.commit().await?;
            Ok(new)
        })
        .await
    }

    /// Returns 0 before the first batch.
    async fn written_through(&self) -> StoreResult<i64> {
        self.observed("written_through", async {
            let found: Option<i64> =
                sqlx::query_scalar("SELECT written_through FROM sink_state WHERE id = 1")
                    .fetch_optional(self.reader())
                    .await?;
            Ok(found.unwrap_or(0))
        })
        .await
    }
}
