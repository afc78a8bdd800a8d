//! The only task that writes the spool's file: transactions with full sync. A batch counts as
//! accepted when its transaction is committed.

#![expect(
    clippy::disallowed_methods,
    reason = "waits for a queue, not for a store"
)]

use super::{Accepted, Shared, SpoolError, options};
use nova_model::event::{AcceptedEvent, Action};
use nova_model::event::{event_id_key, idempotency_key};
use nova_model::time::{DAY_MS, HOUR_MS, UnixMs};
use nova_support::clock::unix_ms;
use nova_support::failpoint;
use nova_support::metrics::METRICS;
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Maximum events in one commit: enough to make the fsync cheap, few enough that the first one
/// waits only briefly.
const COMMIT_EVENTS_MAX: usize = 5_000;
/// Lifetime of a claim. It exceeds the age of the oldest event that a client may still send,
/// plus the tolerance for clocks.
const CLAIM_LIFE_MS: u64 = 25 * HOUR_MS;
/// Pause before the file is opened again. After an fsync error the state of the descriptor is
/// unknown, so it is closed.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
const EXPIRE_INTERVAL_MS: u64 = 60_000;
/// Bookkeeping bytes of one row, in addition to the event itself.
pub(super) const ROW_OVERHEAD_BYTES: i64 = 64;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY AUTOINCREMENT, accepted_ms INTEGER NOT NULL, event TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, expires_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS claims_by_expiry ON claims (expires_ms);
CREATE TABLE IF NOT EXISTS seen (user_id INTEGER, post_id INTEGER, accepted_ms INTEGER NOT NULL, PRIMARY KEY (user_id, post_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS seen_by_age ON seen (accepted_ms);
";

#[derive(Debug)]
pub(super) enum WriteRequest {
    Append {
        events: Vec<AcceptedEvent>,
        done: oneshot::Sender<Result<Accepted, SpoolError>>,
    },
    Forget {
        through: i64,
        done: oneshot::Sender<Result<(), SpoolError>>,
    },
}

pub(super) struct Writer {
    connection: Option<SqliteConnection>,
    shared: Arc<Shared>,
    expired_at_ms: UnixMs,
    memory: Memory,
}

/// The place where accepted keys (claims) and seen posts are stored: in this file or elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Here,
    Elsewhere,
}

impl Writer {
    pub fn new(connection: SqliteConnection, shared: Arc<Shared>, memory: Memory) -> Self {
        Self {
            connection: Some(connection),
            shared,
            expired_at_ms: 0,
            memory,
        }
    }

    pub async fn run(mut self, mut queue: mpsc::Receiver<WriteRequest>) {
        let mut jobs = Vec::new();
        loop {
            let received = if self.shared.healthy.load(Ordering::Relaxed) {
                queue.recv_many(&mut jobs, 1).await
            } else {
                // A host whose spool is unhealthy is not ready and gets no events, so the
                // writer must test the disk without them.
                let waited =
                    tokio::time::timeout(REOPEN_PAUSE, queue.recv_many(&mut jobs, 1)).await;
                waited.unwrap_or(usize::MAX)
            };
            if received == 0 {
                return;
            }
            // Jobs that arrived during the last commit share the next one.
            let mut events = event_count(&jobs);
            while events < COMMIT_EVENTS_MAX
                && let Ok(job) = queue.try_recv()
            {
                events += event_count(std::slice::from_ref(&job));
                jobs.push(job);
            }
            self.commit(std::mem::take(&mut jobs)).await;
        }
    }

    async fn commit(&mut self, jobs: Vec<WriteRequest>) {
        let (mut appends, mut forget, mut forgotten) = (Vec::new(), None, Vec::new());
        for job in jobs {
            match job {
                WriteRequest::Append { events, done } => appends.push((events, done)),
                WriteRequest::Forget { through, done } => {
                    forget = forget.max(Some(through));
                    forgotten.push(done);
                }
            }
        }
        let batches: Vec<&[AcceptedEvent]> = appends
            .iter()
            .map(|(events, _)| events.as_slice())
            .collect();
        let outcome = self.transact(&batches, forget).await;
        self.shared
            .healthy
            .store(outcome.is_ok(), Ordering::Relaxed);
        match outcome {
            Ok(accepted) => {
                for ((_, done), accepted) in appends.into_iter().zip(accepted) {
                    let _ = done.send(Ok(accepted));
                }
                for done in forgotten {
                    let _ = done.send(Ok(()));
                }
                self.shared.written.notify_one();
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "could not write the event spool; refusing events until a write succeeds"
                );
                for (_, done) in appends {
                    let _ = done.send(Err(SpoolError::Unavailable));
                }
                for done in forgotten {
                    let _ = done.send(Err(SpoolError::Unavailable));
                }
                // A descriptor whose fsync failed must not be written again.
                self.connection = None;
                tokio::time::sleep(REOPEN_PAUSE).await;
            }
        }
    }

    async fn transact(
        &mut self,
        batches: &[&[AcceptedEvent]],
        forget: Option<i64>,
    ) -> anyhow::Result<Vec<Accepted>> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.shared.path).await?,
        };
        let now_ms = unix_ms();
        let mut tx = connection.begin().await?;
        let mut change = SizeChange::default();
        let accepted = append(&mut tx, batches, now_ms, self.memory, &mut change).await?;
        if batches.is_empty() && forget.is_none() {
            try_disk(&mut tx).await?;
        }
        if let Some(through) = forget {
            drop_through(&mut tx, through, &mut change).await?;
        }
        if now_ms >= self.expired_at_ms + EXPIRE_INTERVAL_MS {
            expire(&mut tx, now_ms).await?;
            self.expired_at_ms = now_ms;
        }
        tx.commit().await?;
        if !batches.is_empty() {
            failpoint::hit("after_spool_commit");
        }
        self.shared
            .events
            .fetch_add(change.events, Ordering::Relaxed);
        self.shared.bytes.fetch_add(change.bytes, Ordering::Relaxed);
        METRICS
            .spool_events
            .set(self.shared.events.load(Ordering::Relaxed));
        METRICS
            .spool_bytes
            .set(self.shared.bytes.load(Ordering::Relaxed));
        self.connection = Some(connection);
        Ok(accepted)
    }
}

fn event_count(jobs: &[WriteRequest]) -> usize {
    jobs.iter()
        .map(|job| {
            if let WriteRequest::Append { events, .. } = job {
                events.len()
            } else {
                1
            }
        })
        .sum()
}

/// SizeChange of the spool's size that one transaction makes.
#[derive(Default)]
struct SizeChange {
    events: i64,
    bytes: i64,
}

/// Appends the new events. The statements take whole batches as JSON, because a round trip to
/// SQLite's thread costs more than a row.
async fn append(
    tx: &mut SqliteConnection,
    batches: &[&[AcceptedEvent]],
    now_ms: UnixMs,
    memory: Memory,
    change: &mut SizeChange,
) -> anyhow::Result<Vec<Accepted>> {
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<Vec<[[u8; 16]; 2]>> = batches
        .iter()
        .map(|events| {
            events
                .iter()
                .map(|event| [idempotency_key(event), event_id_key(event)])
                .collect()
        })
        .collect();
    // Without claims, a repeat is still detected if both copies are in this transaction.
    let mut claimed = match memory {
        Memory::Here => claimed_already(tx, keys.iter().flatten().flatten()).await?,
        Memory::Elsewhere => HashSet::new(),
    };
    let (mut accepted, mut new_keys, mut entries, mut seen) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (events, keys) in batches.iter().zip(&keys) {
        let mut known = Vec::new();
        for (at, (event, keys)) in events.iter().zip(keys).enumerate() {
            if keys.iter().any(|key| claimed.contains(key)) {
                known.push(at);
                continue;
            }
            claimed.extend(keys);
            if memory == Memory::Here {
                new_keys.extend(keys.map(hex::encode));
            }
            let text = serde_json::to_string(event)?;
            change.events += 1;
            change.bytes += text.len() as i64 + ROW_OVERHEAD_BYTES;
            entries.push(serde_json::value::RawValue::from_string(text)?);
            if matches!(event.action, Action::Impression | Action::View) {
                seen.push((event.user_id, event.post_id, event.accepted_ms));
            }
        }
        accepted.push(Accepted { known });
    }
    sqlx::query(
        "INSERT INTO entries (accepted_ms, event) SELECT ?, value FROM json_each(?) ORDER BY key",
    )
    .bind(now_ms as i64)
    .bind(serde_json::to_string(&entries)?)
    .execute(&mut *tx)
    .await?;
    if memory == Memory::Elsewhere {
        return Ok(accepted);
    }
    let expires_ms = (now_ms + CLAIM_LIFE_MS) as i64;
    sqlx::query(
        "INSERT OR REPLACE INTO claims (key, expires_ms) SELECT unhex(value), ? FROM json_each(?)",
    )
    .bind(expires_ms)
    .bind(serde_json::to_string(&new_keys)?)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "INSERT INTO seen (user_id, post_id, accepted_ms) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true \
         ON CONFLICT DO UPDATE SET accepted_ms = max(accepted_ms, excluded.accepted_ms)",
    )
    .bind(serde_json::to_string(&seen)?)
    .execute(&mut *tx)
    .await?;
    Ok(accepted)
}

async fn claimed_already<'a>(
    tx: &mut SqliteConnection,
    keys: impl Iterator<Item = &'a [u8; 16]>,
) -> anyhow::Result<HashSet<[u8; 16]>> {
    let keys: Vec<String> = keys.map(hex::encode).collect();
    let rows =
        sqlx::query("SELECT key FROM claims WHERE key IN (SELECT unhex(value) FROM json_each(?))")
            .bind(serde_json::to_string(&keys)?)
            .fetch_all(tx)
            .await?;
    rows.iter()
        .map(|row| Ok(row.get::<&[u8], _>(0).try_into()?))
        .collect()
}

async fn drop_through(
    tx: &mut SqliteConnection,
    through: i64,
    change: &mut SizeChange,
) -> anyhow::Result<()> {
    let row = sqlx::query(
        "SELECT count(*), coalesce(sum(octet_length(event)), 0) FROM entries WHERE id <= ?",
    )
    .bind(through)
    .fetch_one(&mut *tx)
    .await?;
    let (events, bytes): (i64, i64) = (row.get(0), row.get(1));
    sqlx::query("DELETE FROM entries WHERE id <= ?")
        .bind(through)
        .execute(&mut *tx)
        .await?;
    change.events -= events;
    change.bytes -= bytes + events * ROW_OVERHEAD_BYTES;
    Ok(())
}

/// Tests the disk by writing a row. A transaction that writes nothing would commit even on a
/// full disk.
pub(super) async fn try_disk(tx: &mut SqliteConnection) -> anyhow::Result<()> {
    sqlx::query("INSERT OR REPLACE INTO claims (key, expires_ms) VALUES (x'00', unixepoch('subsec') * 1000)")
        .execute(tx)
        .await?;
    Ok(())
}

async fn expire(tx: &mut SqliteConnection, now_ms: UnixMs) -> anyhow::Result<()> {
    sqlx::query("DELETE FROM claims WHERE expires_ms < ?")
        .bind(now_ms as i64)
        .execute(&mut *tx)
        .await?;
    let unseen_before = now_ms.saturating_sub(DAY_MS) as i64;
    sqlx::query("DELETE FROM seen WHERE accepted_ms < ?")
        .bind(unseen_before)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

pub(super) async fn connect(path: &Path) -> anyhow::Result<SqliteConnection> {
    let mut connection = options(path).connect().await?;
    sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
    Ok(connection)
}
