//! The storage of records: one SQLite file, `records/records.db` in the data directory, with the
//! policies and modules that made the rankings. Its size and the records' age are bounded, and
//! the oldest records are removed first.

use anyhow::{Context, bail};
use nova_model::artifact::{Digest, PolicySpec};
use nova_model::time::UnixMs;
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DIRECTORY: &str = "records";
const FILE_NAME: &str = "records.db";
const SCHEMA: &str = include_str!("records/schema.sql");
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Overhead per record, in addition to the record itself.
const ROW_OVERHEAD_BYTES: usize = 128;
/// Fraction of the size limit to which a full store is pruned, so that not every write is
/// followed by a deletion.
const LOW_WATER: f64 = 0.95;

/// Returns the path of the file in a data directory.
pub fn file_in(data_dir: &Path) -> PathBuf {
    data_dir.join(DIRECTORY).join(FILE_NAME)
}

/// Limits of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub bytes_max: u64,
    pub age_max: Duration,
}

/// An encoded record with its index columns.
#[derive(Debug)]
pub struct Encoded {
    pub recorded_ms: UnixMs,
    pub user_id: u64,
    pub why: &'static str,
    /// Effective digest of the policy that the viewer was routed to.
    pub routed: Digest,
    /// Effective digest of the policy that served.
    pub served: Digest,
    pub bytes: Vec<u8>,
}

impl Encoded {
    pub fn size_bytes(&self) -> u64 {
        (self.bytes.len() + ROW_OVERHEAD_BYTES) as u64
    }
}

/// A record as stored. Its bytes may be damaged.
#[derive(Debug)]
pub struct Stored {
    pub id: i64,
    pub bytes: Vec<u8>,
}

/// Filter for the records to read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection {
    pub user_id: Option<u64>,
    /// Selects only records whose routed policy failed.
    pub failures: bool,
    /// Selects only the newest records, this many.
    pub limit: Option<u64>,
}

/// One connection to a file of records.
#[derive(Debug)]
pub struct RecordStore {
    connection: SqliteConnection,
    path: PathBuf,
}

impl RecordStore {
    /// Opens a data directory's records for writing. Creates the file if there is none.
    ///
    /// # Errors
    /// Fails if the file cannot be opened or is not a file of records.
    pub async fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let path = file_in(data_dir);
        std::fs::create_dir_all(data_dir.join(DIRECTORY))?;
        let options = options(&path)
            .create_if_missing(true)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            // Losing the last records in a power cut is acceptable, because they are evidence and
            // not a promise.
            .synchronous(SqliteSynchronous::Normal);
        let mut connection = options.connect().await?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
        Ok(Self { connection, path })
    }

    /// Opens a file of records for reading. `path` is the file, its directory or a data
    /// directory.
    ///
    /// # Errors
    /// Fails if there is no such file or it is not a file of records.
    pub async fn open_to_read(path: &Path) -> anyhow::Result<Self> {
        let places = [path.to_owned(), path.join(FILE_NAME), file_in(path)];
        let Some(path) = places.into_iter().find(|place| place.is_file()) else {
            bail!(
                "no records at {}; give a data directory, or a file written by `nova policy replay --export FILE`",
                path.display()
            );
        };
        // The file is not opened read-only, because a reader next to a running host must be able
        // to write the index of the write-ahead log.
        let mut connection = options(&path).pragma("query_only", "ON").connect().await?;
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_master")
            .fetch_one(&mut connection)
            .await
            .with_context(|| format!("{} is not a file of records", path.display()))?;
        // A host that has just started may have created the file but nothing in it yet.
        if tables == 0 {
            bail!(
                "no records at {} yet; set NOVA_RECORD_SAMPLE_RATIO on the host to record rankings",
                path.display()
            );
        }
        sqlx::query("SELECT count(*) FROM policies")
            .fetch_one(&mut connection)
            .await
            .with_context(|| format!("{} is not a file of records", path.display()))?;
        Ok(Self { connection, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the bytes that count against the size limit: records and modules.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub async fn bytes(&mut self) -> anyhow::Result<u64> {
        let bytes: i64 = sqlx::query_scalar(
            "SELECT (SELECT coalesce(sum(bytes), 0) FROM records) + (SELECT coalesce(sum(octet_length(bytes)), 0) FROM modules)",
        )
        .fetch_one(&mut self.connection)
        .await?;
        Ok(bytes.max(0) as u64)
    }

    /// Writes all records or none.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub async fn append(&mut self, records: &[Encoded]) -> anyhow::Result<()> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        for record in records {
            sqlx::query("INSERT INTO records (recorded_ms, user_id, why, routed, served, bytes, record) VALUES (?, ?, ?, ?, ?, ?, ?)")
                .bind(record.recorded_ms as i64)
                .bind(record.user_id as i64)
                .bind(record.why)
                .bind(record.routed.to_string())
                .bind(record.served.to_string())
                .bind(record.size_bytes() as i64)
                .bind(record.bytes.as_slice())
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }

    /// # Errors
    /// Fails if the file cannot be read.
    pub async fn has_policy(&mut self, effective_digest: Digest) -> anyhow::Result<bool> {
        let found = sqlx::query("SELECT 1 FROM policies WHERE effective_digest = ?")
            .bind(effective_digest.to_string())
            .fetch_optional(&mut self.connection)
            .await?;
        Ok(found.is_some())
    }

    /// Stores a policy with its modules. Existing entries are not changed.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub async fn put_policy(
        &mut self,
        spec: &PolicySpec,
        modules: &[(Digest, Vec<u8>)],
    ) -> anyhow::Result<()> {
        let text = serde_json::to_string(spec)?;
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        for (digest, bytes) in modules {
            sqlx::query("INSERT INTO modules (digest, bytes) VALUES (?, ?) ON CONFLICT DO NOTHING")
                .bind(digest.to_string())
                .bind(bytes.as_slice())
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query(
            "INSERT INTO policies (effective_digest, spec) VALUES (?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(spec.digest().to_string())
        .bind(text)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Removes records beyond the age and size limits, and the policies that no record refers to
    /// any more. Returns the number of records removed.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub async fn prune(&mut self, now_ms: UnixMs, bounds: Bounds) -> anyhow::Result<u64> {
        let oldest_ms = now_ms.saturating_sub(bounds.age_max.as_millis() as u64);
        let excess = match self.bytes().await? {
            bytes if bytes > bounds.bytes_max => {
                bytes as i64 - (bounds.bytes_max as f64 * LOW_WATER) as i64
            }
            _ => 0,
        };
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let aged = sqlx::query("DELETE FROM records WHERE recorded_ms < ?")
            .bind(oldest_ms as i64)
            .execute(&mut *tx)
            .await?
            .rows_affected();
        // A record is removed if the records before it add up to less than the excess.
        let surplus = sqlx::query(
            "DELETE FROM records WHERE id IN (SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY id) - bytes AS before FROM records) WHERE before < ?)",
        );
        let crowded = match excess {
            0 => 0,
            _ => surplus
                .bind(excess)
                .execute(&mut *tx)
                .await?
                .rows_affected(),
        };
        if aged + crowded > 0 {
            forget_unnamed_policies(&mut tx).await?;
        }
        tx.commit().await?;
        if aged + crowded > 0 {
            sqlx::query("PRAGMA incremental_vacuum")
                .fetch_all(&mut self.connection)
                .await?;
        }
        Ok(aged + crowded)
    }

    /// Returns the number of records in a selection.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub async fn count(&mut self, selection: Selection) -> anyhow::Result<u64> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM records WHERE (?1 IS NULL OR user_id = ?1) AND (NOT ?2 OR why = 'failure')",
        )
        .bind(selection.user_id.map(|id| id as i64))
        .bind(selection.failures)
        .fetch_one(&mut self.connection)
        .await?;
        let count = count.max(0) as u64;
        Ok(selection.limit.map_or(count, |limit| count.min(limit)))
    }

    /// Returns the id that precedes the newest `limit` records of a selection.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub async fn start_of(&mut self, selection: Selection) -> anyhow::Result<i64> {
        let Some(limit) = selection.limit else {
            return Ok(0);
        };
        let before: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM records WHERE (?1 IS NULL OR user_id = ?1) AND (NOT ?2 OR why = 'failure') ORDER BY id DESC LIMIT 1 OFFSET ?3",
        )
        .bind(selection.user_id.map(|id| id as i64))
        .bind(selection.failures)
        .bind(limit as i64)
        .fetch_optional(&mut self.connection)
        .await?;
        Ok(before.unwrap_or(0))
    }

    /// Returns at most `count` records of a selection with ids above `id`, oldest first.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub async fn read_after(
        &mut self,
        id: i64,
        selection: Selection,
        count: u32,
    ) -> anyhow::Result<Vec<Stored>> {
        let rows = sqlx::query(
            "SELECT id, record FROM records WHERE id > ?3 AND (?1 IS NULL OR user_id = ?1) AND (NOT ?2 OR why = 'failure') ORDER BY id LIMIT ?4",
        )
        .bind(selection.user_id.map(|id| id as i64))
        .bind(selection.failures)
        .bind(id)
        .bind(count)
        .fetch_all(&mut self.connection)
        .await?;
        let stored = |row: &sqlx::sqlite::SqliteRow| Stored {
            id: row.get(0),
            bytes: row.get(1),
        };
        Ok(rows.iter().map(stored).collect())
    }

    /// Returns the policies that records refer to, as they ran. A damaged entry is left out.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub async fn policies(&mut self) -> anyhow::Result<Vec<PolicySpec>> {
        let rows = sqlx::query("SELECT effective_digest, spec FROM policies");
        let rows = rows.fetch_all(&mut self.connection).await?;
        let spec = |row: &sqlx::sqlite::SqliteRow| {
            let spec: PolicySpec = serde_json::from_str(row.get(1)).ok()?;
            (spec.digest().to_string() == row.get::<&str, _>(0)).then_some(spec)
        };
        Ok(rows.iter().filter_map(spec).collect())
    }

    /// Returns a module's bytes. `None` if it is not in the file or its bytes do not match the
    /// digest.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub async fn module(&mut self, digest: Digest) -> anyhow::Result<Option<Vec<u8>>> {
        let bytes: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT bytes FROM modules WHERE digest = ?")
                .bind(digest.to_string())
                .fetch_optional(&mut self.connection)
                .await?;
        Ok(bytes.filter(|bytes| Digest::from_content(bytes) == digest))
    }

    /// Writes a consistent copy of the records as a single file.
    ///
    /// # Errors
    /// Fails if `to` exists or cannot be written.
    pub async fn export(&mut self, to: &Path) -> anyhow::Result<()> {
        if to.exists() {
            bail!("{} already exists; give another file name", to.display());
        }
        let name = to.to_str().context("the file's name is not Unicode")?;
        // SQLite treats the copy as a write, even though it writes to another file.
        sqlx::query("PRAGMA query_only = OFF")
            .execute(&mut self.connection)
            .await?;
        sqlx::query("VACUUM INTO ?")
            .bind(name)
            .execute(&mut self.connection)
            .await
            .with_context(|| to.display().to_string())?;
        // The copy has no write-ahead log, so that it is a single file to pass on.
        let options = options(to).journal_mode(SqliteJournalMode::Delete);
        Ok(options.connect().await?.close().await?)
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
}

async fn forget_unnamed_policies(connection: &mut SqliteConnection) -> anyhow::Result<()> {
    sqlx::query(
        "DELETE FROM policies WHERE effective_digest NOT IN (SELECT routed FROM records UNION SELECT served FROM records)",
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "DELETE FROM modules WHERE digest NOT IN (SELECT json_extract(stage.value, '$.module') FROM policies, json_each(spec, '$.stages') AS stage)",
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
