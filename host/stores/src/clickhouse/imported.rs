//! The import of history by `nova import`: its events are recognised by the ids of their
//! rows, with no time limit.
//!
//! The ids are written last, when the events are in every aggregate. If an insert fails before
//! that, it is repeated with the same token, by this process or by the next import of the same
//! files, and writes what is missing.

use super::events::EventRow;
use super::{ClickHouseStore, failure};
use crate::guard::Failure;
use crate::ports::StoreResult;
use clickhouse::Row;
use nova_model::artifact::Digest;
use nova_model::event::AcceptedEvent;
use serde::Serialize;
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;
use uuid::Uuid;

/// One past event, or several of the same kind at once, from before this host existed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedEvent {
    /// Identifies the row from which the event was read, e.g. `like:17`.
    pub import_id: String,
    /// The event; `user_id` 0 means that it has no user.
    pub event: AcceptedEvent,
    pub times: u64,
}

/// The number of this origin in `events.origin`.
const ORIGIN_IMPORT: i8 = 2;
const NO_PARTITION: i32 = -1;

/// Maximum number of events per insert. A parameter may have 128 KiB, and an import id has up to
/// 45 characters with its quotes.
const EVENTS_PER_INSERT: usize = 2_000;
/// Delays between attempts. A server that restarts is back within seconds.
const RETRY_AFTER: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// Time limit for all attempts at one chunk together.
const TIMEOUT: Duration = Duration::from_secs(90);

const IMPORTED: &str = "SELECT import_id FROM imported_rows WHERE import_id IN {ids:Array(String)}";

/// Finds events that a user's client already sent with the same id. Rows written by an import
/// are not looked up, because no row of a half-stored chunk may be left out.
const SENT: &str = "
SELECT user_id, toString(event_id)
FROM event_ids
WHERE user_id IN {users:Array(UInt64)} AND event_id IN {ids:Array(UUID)} AND kafka_partition >= 0";

#[derive(Row, Serialize)]
struct ImportedRow {
    import_id: String,
}

impl ClickHouseStore {
    /// Stores those events that are not known yet. When this returns, they count in every
    /// aggregate.
    ///
    /// # Errors
    /// Fails if the server fails or refuses. A part may have been stored; a repeated call
    /// recognises it.
    pub async fn insert_imported(&self, events: &[ImportedEvent]) -> StoreResult<()> {
        let guard = self.work_guard.with_timeout(TIMEOUT);
        for events in events.chunks(EVENTS_PER_INSERT) {
            let insert = self.insert_with_retries(events);
            guard.run("insert_imported", insert).await?;
        }
        Ok(())
    }

    async fn insert_with_retries(&self, events: &[ImportedEvent]) -> Result<(), Failure> {
        for pause in RETRY_AFTER {
            match self.insert_unknown(events).await {
                Err(failed) if failed.retryable => tracing::warn!(
                    cause = format!("{:#}", failed.source),
                    "could not insert imported events; trying again"
                ),
                done => return done,
            }
            tokio::time::sleep(pause).await;
        }
        self.insert_unknown(events).await
    }

    async fn insert_unknown(&self, events: &[ImportedEvent]) -> Result<(), Failure> {
        let imported = self.imported_among(events).await?;
        let unknown: Vec<&ImportedEvent> = events
            .iter()
            .filter(|row| !imported.contains(&row.import_id))
            .collect();
        // Compute the token before leaving out events that a client sent: an event sent between
        // two attempts must not change the token of the same chunk.
        let token = token_of(&unknown);
        let sent = self.sent_among(events).await?;
        let rows: Vec<EventRow> = unknown
            .iter()
            .filter(|row| !sent.contains(&(row.event.user_id, row.event.event_id.to_string())))
            .map(|row| row_of(row))
            .collect();
        self.insert("events", &rows, Some(&token)).await?;
        self.insert_ids(&unknown).await
    }

    /// Writes the ids as one block of one part, so that either all of them are stored or none.
    async fn insert_ids(&self, events: &[&ImportedEvent]) -> Result<(), Failure> {
        let rows: Vec<ImportedRow> = events
            .iter()
            .map(|row| ImportedRow {
                import_id: row.import_id.clone(),
            })
            .collect();
        self.insert("imported_rows", &rows, None).await
    }

    async fn imported_among(&self, events: &[ImportedEvent]) -> Result<HashSet<String>, Failure> {
        let ids: Vec<&str> = events.iter().map(|row| &*row.import_id).collect();
        let query = self.worker.query(IMPORTED).param("ids", ids);
        let found = query.fetch_all().await.map_err(failure)?;
        Ok(found.into_iter().collect())
    }

    async fn sent_among(
        &self,
        events: &[ImportedEvent],
    ) -> Result<HashSet<(u64, String)>, Failure> {
        let users: BTreeSet<u64> = events.iter().map(|row| row.event.user_id).collect();
        let ids: Vec<Uuid> = events.iter().map(|row| row.event.event_id).collect();
        let query = (self.worker.query(SENT))
            .param("users", users)
            .param("ids", ids);
        let found = query.fetch_all().await.map_err(failure)?;
        Ok(found.into_iter().collect())
    }
}

/// Returns a token that identifies exactly these rows.
fn token_of(events: &[&ImportedEvent]) -> String {
    let ids: Vec<&str> = events.iter().map(|row| &*row.import_id).collect();
    format!("import:{}", Digest::from_content(ids.join("\n").as_bytes()))
}

fn row_of(imported: &ImportedEvent) -> EventRow {
    let mut row = EventRow::new(&imported.event, NO_PARTITION, 0);
    row.times = imported.times;
    row.origin = ORIGIN_IMPORT;
    row.import_id.clone_from(&imported.import_id);
    row
}
