//! The embedded stores: one SQLite file, `nova.db`, in the data directory.
//!
//! The file has one writer connection and a few readers in WAL mode, so readers never wait for
//! the writer. Another process (`nova import`) may write while a host runs. The second writer
//! waits for the commit of the first, at most `BUSY_TIMEOUT`.

mod audit;
pub mod cache;
mod candidates;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod conformance_tests;
mod daily;
mod exposures;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
pub(crate) mod format_tests;
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

use crate::ports::{StoreError, StoreResult};
use anyhow::Context as _;
use nova_model::time::{DAY_MS, HOUR_MS, UnixMs};
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

/// Maximum time that a writer waits for another process. An import of a million rows locks the
/// file for several seconds, and events wait in the spool meanwhile.
const BUSY_TIMEOUT: Duration = Duration::from_secs(15);
/// Number of readers: enough to overlap the sources of two feeds. More would only compete for
/// the same cores.
const READERS: u32 = 4;
/// Page cache of each connection in SQLite's unit: negative KiB.
const CACHE_KIB: &str = "-32000";
const MMAP_BYTES: &str = "268435456";
/// Pages of 4 KiB in the write-ahead log that trigger a checkpoint. Aggregates are updated all
/// over the file. With SQLite's default of 1,000, every batch of events would write its pages a
/// second time at once. With more, a page that changes often is written back once for many
/// batches.
const WAL_PAGES: &str = "16000";
/// Size to which the log is truncated if it has grown beyond it, for example in a large import.
const WAL_KEEP_BYTES: &str = "134217728";

/// The window of counters and affinities.
pub(crate) const AGGREGATE_WINDOW_MS: u64 = 90 * DAY_MS;
/// Lifetime of a bucket. It is a little longer than the window, so that a clock set back still
/// finds its buckets.
const BUCKET_KEEP_MS: u64 = AGGREGATE_WINDOW_MS + 2 * DAY_MS;
const EVENT_KEEP_MS: u64 = 30 * DAY_MS;
const EXPOSURE_KEEP_MS: u64 = 30 * DAY_MS;

/// Callback at the end of every query, with its name, its duration, and true if it succeeded. A
/// cancelled query counts as failed, with the time until its cancellation.
pub type QueryObserver = Arc<dyn Fn(&'static str, Duration, bool) + Send + Sync>;

/// The embedded store. Its clones share its connections.
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

/// Numbers of rows that `expire` removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    pub post_buckets: u64,
    pub affinity_buckets: u64,
    pub events: u64,
    pub exposures: u64,
}

impl EmbeddedStore {
    /// Opens `data_dir/nova.db` and creates the directory and the tables if they are missing.
    ///
    /// # Errors
    /// If the file cannot be opened or was written by a newer version.
    pub async fn open(data_dir: &Path) -> anyhow::Result<Self> {
        Self::open_observed(data_dir, Arc::new(|_, _, _| {})).await
    }

    /// Opens the store as [`EmbeddedStore::open`] does and reports every query to `observer`.
    ///
    /// # Errors
    /// The same as for [`EmbeddedStore::open`].
    pub async fn open_observed(data_dir: &Path, observer: QueryObserver) -> anyhow::Result<Self> {
        std::fs::create_dir_all(data_dir)
            .with_context(|| format!("cannot create the data directory {}", data_dir.display()))?;
        let file = data_dir.join(FILE_NAME);
        let store = Self::connect(&file, observer)
            .await
            .with_context(|| format!("cannot open {}", file.display()))?;
        migrate(&store.writer)
            .await
            .with_context(|| format!("cannot create or check the schema of {}", file.display()))?;
        Ok(store)
    }

    async fn connect(file: &Path, observer: QueryObserver) -> Result<Self, sqlx::Error> {
        let shared = SqliteConnectOptions::new()
            .filename(file)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(false)
            .pragma("cache_size", CACHE_KIB)
            .pragma("mmap_size", MMAP_BYTES);
        // A commit must be on disk, because the spool deletes acknowledged events and a user
        // trusts a finished import.
        let writing = shared
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("wal_autocheckpoint", WAL_PAGES)
            .pragma("journal_size_limit", WAL_KEEP_BYTES)
            .synchronous(SqliteSynchronous::Full);
        // `query_only` instead of a read-only file, because a WAL reader must be able to write
        // the wal-index.
        let reading = shared.pragma("query_only", "ON");
        let writer = pool_options(1).connect_with(writing).await?;
        let reader = pool_options(READERS).connect_with(reading).await?;
        Ok(Self {
            writer,
            reader,
            observer,
        })
    }

    /// Returns the only connection that writes. Begin with `BEGIN IMMEDIATE`: a transaction
    /// that reads first and writes later cannot wait for another process and fails instead.
    pub(crate) fn writer(&self) -> &SqlitePool {
        &self.writer
    }

    /// Returns the connections that can only read.
    pub(crate) fn reader(&self) -> &SqlitePool {
        &self.reader
    }

    /// Deletes the rows that no window can reach any more. It is meant to run about once an
    /// hour.
    ///
    /// # Errors
    /// If the store fails. Rows deleted before the failure stay deleted.
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

    /// Checks that the file and its readers respond.
    pub(crate) async fn answers(&self) -> StoreResult<()> {
        self.observed("ping", async {
            sqlx::query("SELECT count(*) FROM sink_state")
                .fetch_one(&self.reader)
                .await?;
            Ok(())
        })
        .await
    }

    /// Runs one named query, reports its outcome to the observer, and converts its error to a
    /// [`StoreError`].
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

/// Timer that reports in `Drop`, so that the latencies include a slow query whose caller has
/// given up.
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

/// Returns pool options that keep connections open: connections to a local file do not age, and
/// a new one would start with a cold cache.
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

/// SQLite's primary result codes after which the same call may succeed later: another
/// connection locks the file (5, 6), or the disk failed or was full (10, 13) and may have
/// recovered.
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

/// Returns the start of the hour that contains `at_ms`.
pub(crate) fn hour_start(at_ms: UnixMs) -> UnixMs {
    at_ms - at_ms % HOUR_MS
}

/// Returns the start of the UTC day that contains `at_ms`.
pub(crate) fn day_start(at_ms: UnixMs) -> UnixMs {
    at_ms - at_ms % DAY_MS
}

/// Converts a value to SQLite's signed integer. Ids end at 2^53 − 1, so a value beyond `i64`
/// becomes `i64::MAX` and matches no row.
pub(crate) fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Converts a value from SQLite. Counts, ids and times are never negative in this schema.
pub(crate) fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Formats ids as a JSON array for `IN (SELECT value FROM json_each(?))`.
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
