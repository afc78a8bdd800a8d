//! The durable queue of accepted events: SQLite in WAL mode with full sync. One task writes it
//! and commits many requests at once.
//!
//! A 202 is sent after the commit. On a single embedded host the same transaction also claims
//! the idempotency keys, so a crash can neither lose an accepted event nor turn its retry into
//! a false duplicate. The seen posts are stored in the same file. Hosts that share a Redis keep
//! claims and seen posts there.

mod writer;

use anyhow::Context;
use nova_model::event::AcceptedEvent;
use nova_model::time::UnixMs;
use nova_support::metrics::METRICS;
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Row, SqliteConnection, SqlitePool};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use writer::{Memory, ROW_OVERHEAD_BYTES, WriteRequest, Writer};

/// Maximum requests that wait for the writer. If there are more, the disk is not keeping up.
const QUEUE_MAX: usize = 4_096;
/// Read connections: one for the drain, one to load the seen posts of returning viewers.
const READERS: u32 = 2;

/// The reason that events were not accepted. Both reasons are temporary, so the client can try
/// again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    #[error("the event spool is full")]
    Full,
    #[error("the event spool cannot write to its disk")]
    Unavailable,
}

/// The outcome of an accepted batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Indices of the events that were known already, ascending. The others are in the spool.
    pub known: Vec<usize>,
}

/// An entry of the queue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Entry {
    pub id: i64,
    pub event: AcceptedEvent,
}

#[derive(Debug, Clone)]
pub struct Spool {
    jobs: mpsc::Sender<WriteRequest>,
    reader: SqlitePool,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    bytes_max: u64,
    events: AtomicI64,
    bytes: AtomicI64,
    healthy: AtomicBool,
    written: Notify,
}

impl Spool {
    /// Opens the spool of a host that shares claims and seen posts with other hosts. The spool
    /// stores neither. Entry ids continue after the last id in the file.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub async fn open_shared(data_dir: &Path, bytes_max: u64) -> anyhow::Result<Self> {
        Self::open_as(data_dir, bytes_max, 0, Memory::Elsewhere).await
    }

    /// Opens the spool of a single host. It also stores the claims and the seen posts. Entry
    /// ids continue after `written_through` even if the file was lost, because the sink treats
    /// smaller ids as repeats.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub async fn open(
        data_dir: &Path,
        bytes_max: u64,
        written_through: i64,
    ) -> anyhow::Result<Self> {
        Self::open_as(data_dir, bytes_max, written_through, Memory::Here).await
    }

    async fn open_as(
        data_dir: &Path,
        bytes_max: u64,
        written_through: i64,
        memory: Memory,
    ) -> anyhow::Result<Self> {
        let path = data_dir.join("spool.db");
        let mut connection = writer::connect(&path)
            .await
            .context("could not open the event spool")?;
        continue_after(&mut connection, written_through).await?;
        let row =
            sqlx::query("SELECT count(*), coalesce(sum(octet_length(event)), 0) FROM entries")
                .fetch_one(&mut connection)
                .await?;
        let (events, bytes): (i64, i64) = (row.get(0), row.get(1));
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_lazy_with(options(&path));
        let shared = Arc::new(Shared {
            path,
            bytes_max,
            events: AtomicI64::new(events),
            bytes: AtomicI64::new(bytes + events * ROW_OVERHEAD_BYTES),
            healthy: AtomicBool::new(true),
            written: Notify::new(),
        });
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Writer::new(connection, shared.clone(), memory);
        tokio::spawn(writer.run(queue));
        Ok(Self {
            jobs,
            reader,
            shared,
        })
    }

    /// Makes a batch durable. When this returns `Ok`, the events survive a crash of the host
    /// and of the machine.
    ///
    /// # Errors
    /// [`SpoolError::Full`] if the spool or the writer's queue is full,
    /// [`SpoolError::Unavailable`] if the disk cannot be written. No event of the batch was
    /// accepted.
    pub async fn append(&self, events: Vec<AcceptedEvent>) -> Result<Accepted, SpoolError> {
        if self.is_full() {
            return Err(SpoolError::Full);
        }
        let (done, answer) = oneshot::channel();
        self.jobs
            .try_send(WriteRequest::Append { events, done })
            .map_err(|_| SpoolError::Full)?;
        answer.await.unwrap_or(Err(SpoolError::Unavailable))
    }

    /// Returns the oldest entries after `after`, in order, and the id of the last row read. A
    /// row that cannot be decoded as an event is skipped, logged and counted as a dead letter,
    /// so that it does not block the rows behind it.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub async fn read(&self, after: i64, limit: u32) -> anyhow::Result<(Vec<Entry>, Option<i64>)> {
        // The query returns one row, because fetching each entry as its own row costs more than
        // all other work on it.
        let row = sqlx::query(
            "SELECT max(id), '[' || group_concat('{\"id\":' || id || ',\"event\":' || event || '}', ',' ORDER BY id) || ']' \
             FROM (SELECT id, event FROM entries WHERE id > ? ORDER BY id LIMIT ?)",
        )
        .bind(after)
        .bind(limit)
        .fetch_one(&self.reader)
        .await?;
        let through: Option<i64> = row.get(0);
        let entries = row.get::<Option<&str>, _>(1).unwrap_or("[]");
        match serde_json::from_str(entries) {
            Ok(entries) => Ok((entries, through)),
            Err(_) => Ok((self.read_singly(after, through).await?, through)),
        }
    }

    /// Reads the same entries one by one, because at least one of them cannot be decoded.
    async fn read_singly(&self, after: i64, through: Option<i64>) -> anyhow::Result<Vec<Entry>> {
        let rows =
            sqlx::query("SELECT id, event FROM entries WHERE id > ? AND id <= ? ORDER BY id")
                .bind(after)
                .bind(through)
                .fetch_all(&self.reader)
                .await?;
        let entries = rows.iter().filter_map(|row| {
            let (id, event): (i64, &str) = (row.get(0), row.get(1));
            let event = serde_json::from_str(event).inspect_err(|error| {
                METRICS.dead_letters_total.with_label_values(&["events", "undecodable"]).inc();
                tracing::error!(entry = id, %error, "could not decode a spool entry as an event; skipping it and counting it as a dead letter");
            });
            Some(Entry { id, event: event.ok()? })
        });
        Ok(entries.collect())
    }

    /// Deletes the entries up to `through`, which the sink has.
    ///
    /// # Errors
    /// If the file cannot be written. The entries stay, and a later call deletes them.
    pub async fn forget(&self, through: i64) -> Result<(), SpoolError> {
        let (done, answer) = oneshot::channel();
        self.jobs
            .send(WriteRequest::Forget { through, done })
            .await
            .map_err(|_| SpoolError::Unavailable)?;
        answer.await.unwrap_or(Err(SpoolError::Unavailable))
    }

    /// Returns the posts of one viewer's impressions and views accepted since `since_ms`, from
    /// this spool.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub async fn seen_since(
        &self,
        viewer: u64,
        since_ms: UnixMs,
    ) -> anyhow::Result<Vec<(u64, UnixMs)>> {
        let rows = sqlx::query(
            "SELECT post_id, accepted_ms FROM seen WHERE user_id = ? AND accepted_ms >= ?",
        )
        .bind(viewer as i64)
        .bind(since_ms as i64)
        .fetch_all(&self.reader)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| (row.get::<i64, _>(0) as u64, row.get::<i64, _>(1) as u64))
            .collect())
    }

    /// Waits until the writer has committed.
    pub async fn written(&self) {
        self.shared.written.notified().await;
    }

    /// Number of events that are accepted and not yet drained.
    pub fn pending(&self) -> i64 {
        self.shared.events.load(Ordering::Relaxed)
    }

    pub fn pending_bytes(&self) -> i64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// True if the spool has reached its size limit. It then refuses events until the drain has
    /// removed some.
    pub fn is_full(&self) -> bool {
        self.pending_bytes().max(0) as u64 >= self.shared.bytes_max
    }

    /// False after a failed write, until one succeeds.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed)
    }
}

async fn continue_after(connection: &mut SqliteConnection, id: i64) -> anyhow::Result<()> {
    let mut tx = connection.begin().await?;
    let last: Option<i64> =
        sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'entries'")
            .fetch_optional(&mut *tx)
            .await?;
    let statement = match last {
        Some(last) if last >= id => None,
        Some(_) => Some("UPDATE sqlite_sequence SET seq = ? WHERE name = 'entries'"),
        None => Some("INSERT INTO sqlite_sequence (name, seq) VALUES ('entries', ?)"),
    };
    if let Some(statement) = statement {
        sqlx::query(statement).bind(id).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
