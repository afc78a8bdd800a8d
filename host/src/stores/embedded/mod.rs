//! The embedded set: one SQLite file, `nova.db`, in the data directory.
//!
//! One writer connection and a few readers, in WAL mode: readers never wait for the writer, and
//! another process (`nova import`) may write while a host runs; whoever comes second waits for
//! the other's commit, at most `BUSY_TIMEOUT`.

mod audit;
pub mod cache;
mod candidates;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod conformance_tests;
mod daily;
mod exposures;
pub mod lease;
pub mod registry;
mod relational;
pub mod seen;
mod sink;
mod suggested;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

pub(crate) use sink::{Hex16, aggregate_after, first_16, last_event_row};

use super::{DAY_MS, HOUR_MS, StoreError, StoreResult, UnixMs};
use anyhow::Context as _;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The name in `degraded`, `/health` and metrics.
pub const STORE_NAME: &str = "sqlite";

const FILE_NAME: &str = "nova.db";
const SCHEMA: &str = include_str!("schema.sql");
const SCHEMA_VERSION: i64 = 1;

/// The longest a writer waits for another process. An import of a million rows holds the file for
/// several seconds; events wait in the spool meanwhile.
const BUSY_TIMEOUT: Duration = Duration::from_secs(15);
/// Enough to overlap the sources of two feeds; more only compete for the same cores.
const READERS: u32 = 4;
/// Page cache of each connection, in the unit SQLite wants: negative KiB.
const CACHE_KIB: &str = "-32000";
const MMAP_BYTES: &str = "268435456";
/// How many pages of 4 KiB may wait in the write-ahead log. Aggregates are updated all over the
/// file: with SQLite's 1,000, every batch of events would write its pages a second time at once;
/// with more, a page that changes often is written back once for many batches.
const WAL_PAGES: &str = "16000";
/// What the log is cut back to when it was longer, after a large import.
const WAL_KEEP_BYTES: &str = "134217728";

/// The window of counters and affinities.
pub(crate) const AGGREGATE_WINDOW_MS: u64 = 90 * DAY_MS;
/// Buckets live a little longer than the window, so that a clock set back finds them.
const BUCKET_KEEP_MS: u64 = AGGREGATE_WINDOW_MS + 2 * DAY_MS;
const EVENT_KEEP_MS: u64 = 30 * DAY_MS;
const EXPOSURE_KEEP_MS: u64 = 30 * DAY_MS;

/// Told of every query when it ends: its name, how long it took, whether it succeeded. A query
/// whose caller gave up counts as not succeeded, with the time until then.
pub type QueryObserver = Arc<dyn Fn(&'static str, Duration, bool) + Send + Sync>;

/// The embedded store; clones share its connections.
#[derive(Clone)]
pub struct EmbeddedStore {
    writer: SqlitePool,
    reader: SqlitePool,
    observer: QueryObserver,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore").finish_non_exhaustive()
    }
}

/// How many rows `expire` removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    pub post_buckets: u64,
    pub affinity_buckets: u64,
    pub events: u64,
    pub exposures: u64,
}

impl EmbeddedStore {
    /// Opens `data_dir/nova.db` and creates what is missing, the directory included.
    ///
    /// # Errors
    /// When the file cannot be opened or was written by a newer version.
    pub async fn open(data_dir: &Path) -> anyhow::Result<Self> {
        Self::open_observed(data_dir, Arc::new(|_, _, _| {})).await
    }

    /// As [`EmbeddedStore::open`], and `observer` hears of every query.
    ///
    /// # Errors
    /// As [`EmbeddedStore::open`].
    pub async fn open_observed(data_dir: &Path, observer: QueryObserver) -> anyhow::Result<Self> {
        std::fs::create_dir_all(data_dir)
            .with_context(|| format!("cannot create the data directory {}", data_dir.display()))?;
        let file = data_dir.join(FILE_NAME);
        let store = Self::connect(&file, observer)
            .await
            .with_context(|| format!("cannot open {}", file.display()))?;
        migrate(&store.writer)
            .await
            .with_context(|| format!("cannot prepare {}", file.display()))?;
        Ok(store)
    }

    async fn connect(file: &Path, observer: QueryObserver) -> Result<Self, sqlx::Error> {
        let shared = SqliteConnectOptions::new()
            .filename(file)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(false)
            .pragma("cache_size", CACHE_KIB)
            .pragma("mmap_size", MMAP_BYTES);
        // Events are acknowledged to the spool and imports to a person, so a commit is on disk.
        let writing = shared
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("wal_autocheckpoint", WAL_PAGES)
            .pragma("journal_size_limit", WAL_KEEP_BYTES)
            .synchronous(SqliteSynchronous::Full);
        // `query_only` and not a read-only file: a WAL reader must be able to write the wal-index.
        let reading = shared.pragma("query_only", "ON");
        let writer = pool_options(1).connect_with(writing).await?;
        let reader = pool_options(READERS).connect_with(reading).await?;
        Ok(Self {
            writer,
            reader,
            observer,
        })
    }

    /// The one connection that writes. Begin with `BEGIN IMMEDIATE`: a transaction that reads
    /// first and writes later cannot wait for another process and fails instead.
    pub(crate) fn writer(&self) -> &SqlitePool {
        &self.writer
    }

    /// Connections that can only read.
    pub(crate) fn reader(&self) -> &SqlitePool {
        &self.reader
    }

    /// Deletes what no window can reach any more. Meant to run about once an hour.
    ///
    /// # Errors
    /// When the store fails; what was deleted before stays deleted.
    pub async fn expire(&self, now_ms: UnixMs) -> StoreResult<Expired> {
        let bucket = to_sql(now_ms.saturating_sub(BUCKET_KEEP_MS));
        let event = to_sql(now_ms.saturating_sub(EVENT_KEEP_MS));
        let exposure = to_sql(now_ms.saturating_sub(EXPOSURE_KEEP_MS));
        self.observed("expire", async {
            let delete = async |sql: &'static str, before_ms: i64| {
                let done = sqlx::query(sql)
                    .bind(before_ms)
                    .execute(&self.writer)
                    .await?;
                anyhow::Ok(done.rows_affected())
            };
            Ok(Expired {
                post_buckets: delete("DELETE FROM post_metrics_1h WHERE hour_ms < ?1", bucket)
                    .await?,
                affinity_buckets: delete("DELETE FROM user_author_90d WHERE day_ms < ?1", bucket)
                    .await?,
                events: delete(
                    "DELETE FROM events WHERE event_time_ms / 1000 < ?1 / 1000",
                    event,
                )
                .await?,
                exposures: delete("DELETE FROM exposures WHERE served_at_ms < ?1", exposure)
                    .await?,
            })
        })
        .await
    }

    /// Asks both the file and its readers for a sign of life.
    pub(crate) async fn answers(&self) -> StoreResult<()> {
        self.observed("ping", async {
            sqlx::query("SELECT count(*) FROM sink_state")
                .fetch_one(&self.reader)
                .await?;
            Ok(())
        })
        .await
    }

    /// Runs one named query: its outcome reaches the observer, its error becomes a [`StoreError`].
    pub(crate) async fn observed<T>(
        &self,
        query: &'static str,
        work: impl Future<Output = anyhow::Result<T>> + Send,
    ) -> StoreResult<T> {
        let mut timer = QueryTimer {
            observer: &self.observer,
            query,
            begun: Instant::now(),
            ok: false,
        };
        let result = work.await;
        timer.ok = result.is_ok();
        result.map_err(|source| StoreError {
            store: STORE_NAME,
            query,
            retryable: is_retryable(&source),
            source,
        })
    }
}

/// Reports in `Drop`, so that a slow query whose caller gave up is not missing from the latencies.
struct QueryTimer<'a> {
    observer: &'a QueryObserver,
    query: &'static str,
    begun: Instant,
    ok: bool,
}

impl Drop for QueryTimer<'_> {
    fn drop(&mut self) {
        (self.observer)(self.query, self.begun.elapsed(), self.ok);
    }
}

/// Connections to a local file do not age, and a new one would begin with a cold cache.
fn pool_options(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

async fn migrate(writer: &SqlitePool) -> anyhow::Result<()> {
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let found: i64 = sqlx::query_scalar("PRAGMA user_version")
        .fetch_one(&mut *tx)
        .await?;
    anyhow::ensure!(
        found <= SCHEMA_VERSION,
        "its schema has version {found}, this nova knows up to {SCHEMA_VERSION}: use the newer nova that wrote it"
    );
    if found < SCHEMA_VERSION {
        sqlx::raw_sql(SCHEMA).execute(&mut *tx).await?;
        sqlx::raw_sql("PRAGMA user_version = 1")
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(())
}

/// SQLite's primary result codes after which the same call may succeed later: somebody else holds
/// the file (5, 6), or the disk failed or was full (10, 13) and may be whole again.
const RETRYABLE_CODES: [i32; 4] = [5, 6, 10, 13];

fn is_retryable(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Database(error)) => error
            .code()
            .and_then(|code| code.parse::<i32>().ok())
            .is_some_and(|extended| RETRYABLE_CODES.contains(&(extended & 0xff))),
        Some(sqlx::Error::PoolTimedOut | sqlx::Error::Io(_)) => true,
        _ => false,
    }
}

/// The start of the hour that contains `at_ms`.
pub(crate) fn hour_start(at_ms: UnixMs) -> UnixMs {
    at_ms - at_ms % HOUR_MS
}

/// The start of the UTC day that contains `at_ms`.
pub(crate) fn day_start(at_ms: UnixMs) -> UnixMs {
    at_ms - at_ms % DAY_MS
}

/// SQLite's integers are signed. Ids end at 2^53 − 1; anything beyond `i64` matches no row.
pub(crate) fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Counts, ids and times are never negative in this schema.
pub(crate) fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// For `IN (SELECT value FROM json_each(?))`.
fn json_ids(ids: &[u64]) -> String {
    let mut json = String::with_capacity(ids.len() * 8 + 2);
    json.push('[');
    for (position, id) in ids.iter().enumerate() {
        if position > 0 {
            json.push(',');
        }
        json.push_str(&to_sql(*id).to_string());
    }
    json.push(']');
    json
}
