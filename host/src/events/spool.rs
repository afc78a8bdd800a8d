//! The durable queue of accepted events: SQLite in WAL mode with full sync, written by one task
//! that commits many requests at once.
//!
//! A 202 follows the commit. Where a host is alone, claims on idempotency keys are made in the same transaction, so a
//! crash can neither lose an accepted event nor turn its retry into a false duplicate; and the posts that were seen are
//! kept beside them. Hosts that share a Redis have both there.

use super::event::{event_id_key, idempotency_key};
use crate::clock::unix_ms;
use crate::failpoint;
use crate::metrics::METRICS;
use crate::stores::{AcceptedEvent, Action, DAY_MS, HOUR_MS, UnixMs};
use anyhow::Context;
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection, SqlitePool};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};

/// Requests that may wait for the writer; more than that and the disk is not keeping up.
const QUEUE_MAX: usize = 4_096;
/// Events committed together: enough to make the fsync cheap, few enough to keep the first one waiting little.
const COMMIT_EVENTS_MAX: usize = 5_000;
/// Claims outlive the oldest event a client may still send, plus its allowance for clocks.
const CLAIM_LIFE_MS: u64 = 25 * HOUR_MS;
/// An fsync error leaves the descriptor in doubt: it is closed, and not opened again for this long.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// One for the consumer, one for viewers who come back.
const READERS: u32 = 2;
const EXPIRE_INTERVAL_MS: u64 = 60_000;
/// One row of bookkeeping beside the event itself.
const ROW_OVERHEAD_BYTES: i64 = 64;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY AUTOINCREMENT, accepted_ms INTEGER NOT NULL, event TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, expires_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS claims_by_expiry ON claims (expires_ms);
CREATE TABLE IF NOT EXISTS seen (user_id INTEGER, post_id INTEGER, accepted_ms INTEGER NOT NULL, PRIMARY KEY (user_id, post_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS seen_by_age ON seen (accepted_ms);
";

/// Why events were not accepted. Both pass: try again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    #[error("the event spool is full")]
    Full,
    #[error("the event spool cannot write to its disk")]
    Unavailable,
}

/// What became of a batch.
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
    jobs: mpsc::Sender<Job>,
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

#[derive(Debug)]
enum Job {
    Append {
        events: Vec<AcceptedEvent>,
        done: oneshot::Sender<Result<Accepted, SpoolError>>,
    },
    Forget {
        through: i64,
        done: oneshot::Sender<Result<(), SpoolError>>,
    },
}

impl Spool {
    /// For a host that shares claims and seen posts with others: this keeps neither. Entry ids begin where they ended.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub async fn open_shared(data_dir: &Path, bytes_max: u64) -> anyhow::Result<Self> {
        Self::open_as(data_dir, bytes_max, 0, Memory::Elsewhere).await
    }

    /// For a host that is alone. Entry ids continue after `written_through`, whatever
    /// happened to the file, because the sink takes smaller ids for repeats.
    ///
    /// # Errors
    /// When the file cannot be opened.
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
        let mut connection = connect(&path).await.context("event spool")?;
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
        tokio::spawn(
            Writer {
                connection: Some(connection),
                shared: shared.clone(),
                expired_at_ms: 0,
                memory,
            }
            .run(queue),
        );
        Ok(Self {
            jobs,
            reader,
            shared,
        })
    }

    /// Makes a batch durable. When this returns `Ok`, the events survive a crash of the host and of the machine.
    ///
    /// # Errors
    /// Nothing of the batch was accepted.
    pub async fn append(&self, events: Vec<AcceptedEvent>) -> Result<Accepted, SpoolError> {
        if self.is_full() {
            return Err(SpoolError::Full);
        }
        let (done, answer) = oneshot::channel();
        self.jobs
            .try_send(Job::Append { events, done })
            .map_err(|_| SpoolError::Full)?;
        answer.await.unwrap_or(Err(SpoolError::Unavailable))
    }

    /// The oldest entries after `after`, in order, and the id of the last row looked at. A row that
    /// cannot be read as an event is left out, logged and counted as a dead letter: it must not stop
    /// those behind it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn read(&self, after: i64, limit: u32) -> anyhow::Result<(Vec<Entry>, Option<i64>)> {
        // One row: fetching each entry by itself costs more than everything else that is done with it.
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

    /// The same, when one of them is no event.
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
                tracing::error!(entry = id, %error, "an entry of the spool is no event and is left out");
            });
            Some(Entry { id, event: event.ok()? })
        });
        Ok(entries.collect())
    }

    /// Drops what was counted.
    ///
    /// # Errors
    /// When the file cannot be written; the entries stay and are dropped later.
    pub async fn forget(&self, through: i64) -> Result<(), SpoolError> {
        let (done, answer) = oneshot::channel();
        self.jobs
            .send(Job::Forget { through, done })
            .await
            .map_err(|_| SpoolError::Unavailable)?;
        answer.await.unwrap_or(Err(SpoolError::Unavailable))
    }

    /// Posts of accepted impressions and views of one viewer since an instant, from this spool.
    ///
    /// # Errors
    /// When the file cannot be read.
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

    /// Wakes when something was written.
    pub async fn written(&self) {
        self.shared.written.notified().await;
    }

    /// Events that are accepted and not yet counted.
    pub fn pending(&self) -> i64 {
        self.shared.events.load(Ordering::Relaxed)
    }

    pub fn pending_bytes(&self) -> i64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// No more events are accepted until some are counted.
    pub fn is_full(&self) -> bool {
        self.pending_bytes().max(0) as u64 >= self.shared.bytes_max
    }

    /// `false` after a write failed, until one succeeds.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed)
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
}

async fn connect(path: &Path) -> anyhow::Result<SqliteConnection> {
    let mut connection = options(path).connect().await?;
    sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
    Ok(connection)
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

struct Writer {
    connection: Option<SqliteConnection>,
    shared: Arc<Shared>,
    expired_at_ms: UnixMs,
    memory: Memory,
}

/// Who remembers what was accepted and what was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Here,
    Elsewhere,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::new();
        loop {
            let received = if self.shared.healthy.load(Ordering::Relaxed) {
                queue.recv_many(&mut jobs, 1).await
            } else {
                // Not ready means that no events come, so the disk must be tried without them.
                let waited =
                    tokio::time::timeout(REOPEN_PAUSE, queue.recv_many(&mut jobs, 1)).await;
                waited.unwrap_or(usize::MAX)
            };
            if received == 0 {
                return;
            }
            // Whatever came in while the last commit was under way shares the next one.
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

    async fn commit(&mut self, jobs: Vec<Job>) {
        let (mut appends, mut forget, mut forgotten) = (Vec::new(), None, Vec::new());
        for job in jobs {
            match job {
                Job::Append { events, done } => appends.push((events, done)),
                Job::Forget { through, done } => {
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
                    "the event spool cannot be written; events are refused"
                );
                for (_, done) in appends {
                    let _ = done.send(Err(SpoolError::Unavailable));
                }
                for done in forgotten {
                    let _ = done.send(Err(SpoolError::Unavailable));
                }
                // Nothing may be written through a descriptor whose fsync failed.
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
        let mut change = Change::default();
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

fn event_count(jobs: &[Job]) -> usize {
    jobs.iter()
        .map(|job| {
            if let Job::Append { events, .. } = job {
                events.len()
            } else {
                1
            }
        })
        .sum()
}

/// What a transaction adds to the spool's size.
#[derive(Default)]
struct Change {
    events: i64,
    bytes: i64,
}

/// Appends the events that are new. Statements take whole batches as JSON, because a round trip to
/// SQLite's thread costs more than a row.
async fn append(
    tx: &mut SqliteConnection,
    batches: &[&[AcceptedEvent]],
    now_ms: UnixMs,
    memory: Memory,
    change: &mut Change,
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
    // Without claims a repeat within the transaction is still one.
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
    change: &mut Change,
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

/// Writes a row: a transaction that writes nothing commits on a full disk as well.
async fn try_disk(tx: &mut SqliteConnection) -> anyhow::Result<()> {
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn event(post_id: u64, action: Action) -> AcceptedEvent {
        let now_ms = unix_ms();
        AcceptedEvent {
            event_id: Uuid::now_v7(),
            event_time_ms: now_ms / 1_000 * 1_000,
            accepted_ms: now_ms,
            user_id: 7,
            post_id,
            author_id: 2,
            action,
            dwell_ms: None,
            device: "ios".into(),
            app_ver: "1.0.0".into(),
            ranking_id: None,
        }
    }

    #[tokio::test]
    async fn a_shared_spool_knows_repeats_within_a_commit_alone_and_keeps_no_seen_posts() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open_shared(dir.path(), 1 << 20).await.unwrap();
        let one = event(1, Action::View);
        let twice = vec![one.clone(), one.clone()];
        assert_eq!(spool.append(twice).await.unwrap().known, [1]);
        assert!(spool.append(vec![one]).await.unwrap().known.is_empty());
        assert_eq!(spool.pending(), 2);
        assert!(spool.seen_since(7, 0).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_repeat_is_dropped_within_a_batch_across_batches_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let view = event(1, Action::View);
        let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
        let batch = vec![
            view.clone(),
            AcceptedEvent {
                event_id: Uuid::now_v7(),
                ..view.clone()
            },
        ];
        assert_eq!(spool.append(batch).await, Ok(Accepted { known: vec![1] }));
        let other_second = AcceptedEvent {
            event_time_ms: view.event_time_ms - 1_000,
            ..view.clone()
        };
        assert_eq!(
            spool.append(vec![other_second]).await,
            Ok(Accepted { known: vec![0] }),
            "the event id was used before"
        );
        drop(spool);
        let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
        assert_eq!(
            spool.append(vec![view]).await,
            Ok(Accepted { known: vec![0] })
        );
        assert_eq!(spool.pending(), 1);
    }

    #[tokio::test]
    async fn entries_come_back_in_order_and_leave_when_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 20, 100).await.unwrap();
        let posts = [3, 1, 2];
        spool
            .append(posts.map(|post| event(post, Action::Like)).into())
            .await
            .unwrap();
        let (entries, _) = spool.read(0, 10).await.unwrap();
        assert_eq!(
            entries
                .iter()
                .map(|entry| entry.event.post_id)
                .collect::<Vec<_>>(),
            posts
        );
        assert_eq!(entries[0].id, 101, "ids continue after what the sink has");
        spool.forget(entries[1].id).await.unwrap();
        assert_eq!(spool.read(0, 10).await.unwrap().0.len(), 1);
        assert_eq!(spool.pending(), 1);
    }

    #[tokio::test]
    async fn an_entry_that_is_no_event_is_left_out_and_those_behind_it_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
        let likes = [1, 2, 3].map(|post| event(post, Action::Like));
        spool.append(likes.into()).await.unwrap();
        let mut connection = connect(&dir.path().join("spool.db")).await.unwrap();
        for broken in ["{", "{}"] {
            sqlx::query("UPDATE entries SET event = ? WHERE id = 2")
                .bind(broken)
                .execute(&mut connection)
                .await
                .unwrap();
            let (entries, through) = spool.read(0, 10).await.unwrap();
            let posts: Vec<u64> = entries.iter().map(|entry| entry.event.post_id).collect();
            assert_eq!((posts, through), (vec![1, 3], Some(3)), "{broken}");
        }
    }

    #[tokio::test]
    async fn a_full_spool_refuses_and_takes_events_again_once_it_is_drained() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 300, 0).await.unwrap();
        spool
            .append(vec![event(1, Action::Like), event(2, Action::Like)])
            .await
            .unwrap();
        assert_eq!(
            spool.append(vec![event(3, Action::Like)]).await,
            Err(SpoolError::Full)
        );
        spool.forget(2).await.unwrap();
        assert_eq!(
            spool.append(vec![event(3, Action::Like)]).await,
            Ok(Accepted::default())
        );
    }

    #[tokio::test]
    async fn trying_the_disk_writes_one_row_however_often() {
        let dir = tempfile::tempdir().unwrap();
        let mut connection = connect(&dir.path().join("spool.db")).await.unwrap();
        for _ in 0..2 {
            try_disk(&mut connection).await.unwrap();
        }
        let claims: i64 = sqlx::query_scalar("SELECT count(*) FROM claims")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(claims, 1);
    }

    #[tokio::test]
    async fn what_is_forgotten_leaves_no_bytes_behind_whatever_the_alphabet() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
        let device = "電話📱".to_owned();
        spool
            .append(vec![AcceptedEvent {
                device,
                ..event(1, Action::Like)
            }])
            .await
            .unwrap();
        assert!(spool.pending_bytes() > 0);
        spool.forget(1).await.unwrap();
        assert_eq!((spool.pending(), spool.pending_bytes()), (0, 0));
    }

    #[tokio::test]
    async fn impressions_and_views_are_seen_and_likes_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
        let events = vec![
            event(1, Action::Impression),
            event(2, Action::View),
            event(3, Action::Like),
        ];
        spool.append(events).await.unwrap();
        let mut seen: Vec<u64> = spool
            .seen_since(7, 0)
            .await
            .unwrap()
            .into_iter()
            .map(|(post, _)| post)
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
    }
}
