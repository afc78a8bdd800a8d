//! Where records are kept: one SQLite file, `records/records.db` in the data directory, with the policies and modules
//! that the records were ranked by. Bounded in bytes and in age; the oldest go first.

use super::record::Record;
use crate::policy::artifact::{Digest, PolicySpec};
use crate::stores::UnixMs;
use anyhow::{Context, bail};
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DIRECTORY: &str = "records";
const FILE_NAME: &str = "records.db";
const SCHEMA: &str = include_str!("schema.sql");
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bookkeeping beside a record itself.
const ROW_OVERHEAD_BYTES: usize = 128;
/// A full store is emptied a little further than it must, so that not every write is followed by a deletion.
const LOW_WATER: f64 = 0.95;

/// The file of a data directory.
pub fn file_in(data_dir: &Path) -> PathBuf {
    data_dir.join(DIRECTORY).join(FILE_NAME)
}

/// What may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub bytes_max: u64,
    pub age_max: Duration,
}

/// A record in the form it is written in, with what it is found by.
#[derive(Debug)]
pub struct Encoded {
    recorded_ms: UnixMs,
    user_id: u64,
    why: &'static str,
    routed: Digest,
    served: Digest,
    pub bytes: Vec<u8>,
}

impl Encoded {
    pub fn of(record: &Record) -> Self {
        let served = &record.answer.policy;
        let routed = record.routed.as_ref().unwrap_or(served);
        Self {
            recorded_ms: record.now_ms,
            user_id: record.user_id,
            why: record.why.as_str(),
            routed: routed.effective_digest,
            served: served.effective_digest,
            bytes: record.encode(),
        }
    }

    pub fn size_bytes(&self) -> u64 {
        (self.bytes.len() + ROW_OVERHEAD_BYTES) as u64
    }
}

/// A record as it lies in the file: it may not be one any more.
#[derive(Debug)]
pub struct Stored {
    pub id: i64,
    pub bytes: Vec<u8>,
}

/// Which records to read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection {
    pub user_id: Option<u64>,
    /// Only where the routed policy failed.
    pub failures: bool,
    /// The newest ones, this many.
    pub limit: Option<u64>,
}

/// One connection to a file of records.
#[derive(Debug)]
pub struct RecordStore {
    connection: SqliteConnection,
    path: PathBuf,
}

impl RecordStore {
    /// Opens a data directory's records for writing, and makes the file when there is none.
    ///
    /// # Errors
    /// When the file cannot be opened or is none of records.
    pub async fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let path = file_in(data_dir);
        std::fs::create_dir_all(data_dir.join(DIRECTORY))?;
        let options = options(&path)
            .create_if_missing(true)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            // A record is evidence, not a promise: a power cut may take the last ones.
            .synchronous(SqliteSynchronous::Normal);
        let mut connection = options.connect().await?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
        Ok(Self { connection, path })
    }

    /// Opens a file of records, a directory with one, or a data directory, to read.
    ///
    /// # Errors
    /// When there is no such file, or it is none of records.
    pub async fn open_to_read(path: &Path) -> anyhow::Result<Self> {
        let places = [path.to_owned(), path.join(FILE_NAME), file_in(path)];
        let Some(path) = places.into_iter().find(|place| place.is_file()) else {
            bail!(
                "no records at {}; name a data directory, or a file that `nova policy replay --export FILE` wrote",
                path.display()
            );
        };
        // Not a read-only file: a reader beside a running host must be able to write the index of its log.
        let mut connection = options(&path).pragma("query_only", "ON").connect().await?;
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_master")
            .fetch_one(&mut connection)
            .await
            .with_context(|| format!("{} is not a file of records", path.display()))?;
        // A host that has just started has made the file and nothing in it yet.
        if tables == 0 {
            bail!(
                "no records at {} yet; hosts keep them as NOVA_RECORD_SAMPLE_RATIO says",
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

    /// Bytes that count against the bound: records and modules.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn bytes(&mut self) -> anyhow::Result<u64> {
        let bytes: i64 = sqlx::query_scalar(
            "SELECT (SELECT coalesce(sum(bytes), 0) FROM records) + (SELECT coalesce(sum(octet_length(bytes)), 0) FROM modules)",
        )
        .fetch_one(&mut self.connection)
        .await?;
        Ok(bytes.max(0) as u64)
    }

    /// Writes records, all or none.
    ///
    /// # Errors
    /// When the file cannot be written.
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
    /// When the file cannot be read.
    pub async fn has_policy(&mut self, effective_digest: Digest) -> anyhow::Result<bool> {
        let found = sqlx::query("SELECT 1 FROM policies WHERE effective_digest = ?")
            .bind(effective_digest.to_string())
            .fetch_optional(&mut self.connection)
            .await?;
        Ok(found.is_some())
    }

    /// Keeps a policy with its modules; what is there already stays.
    ///
    /// # Errors
    /// When the file cannot be written.
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

    /// Removes what is too old or too much, with the policies that no record names any more. Returns the records removed.
    ///
    /// # Errors
    /// When the file cannot be written.
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
        // A record goes while those before it are together less than the excess.
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

    /// How many records a selection has.
    ///
    /// # Errors
    /// When the file cannot be read.
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

    /// The id after which the newest `limit` records of a selection begin.
    ///
    /// # Errors
    /// When the file cannot be read.
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

    /// At most `count` records of a selection after `id`, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
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

    /// The policies that records name, as they ran. One that is not as it was written is left out.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn policies(&mut self) -> anyhow::Result<Vec<PolicySpec>> {
        let rows = sqlx::query("SELECT effective_digest, spec FROM policies");
        let rows = rows.fetch_all(&mut self.connection).await?;
        let spec = |row: &sqlx::sqlite::SqliteRow| {
            let spec: PolicySpec = serde_json::from_str(row.get(1)).ok()?;
            (spec.digest().to_string() == row.get::<&str, _>(0)).then_some(spec)
        };
        Ok(rows.iter().filter_map(spec).collect())
    }

    /// A module's bytes; `None` also when they are not those of their digest.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn module(&mut self, digest: Digest) -> anyhow::Result<Option<Vec<u8>>> {
        let bytes: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT bytes FROM modules WHERE digest = ?")
                .bind(digest.to_string())
                .fetch_optional(&mut self.connection)
                .await?;
        Ok(bytes.filter(|bytes| Digest::of(bytes) == digest))
    }

    /// Writes a copy that is one file, whole as of now.
    ///
    /// # Errors
    /// When `to` exists or cannot be written.
    pub async fn export(&mut self, to: &Path) -> anyhow::Result<()> {
        if to.exists() {
            bail!("{} exists; name another file", to.display());
        }
        let name = to.to_str().context("the file's name is not Unicode")?;
        // A copy is a write as well, if of another file.
        sqlx::query("PRAGMA query_only = OFF")
            .execute(&mut self.connection)
            .await?;
        sqlx::query("VACUUM INTO ?")
            .bind(name)
            .execute(&mut self.connection)
            .await
            .with_context(|| to.display().to_string())?;
        // Without a log beside it: it is meant to be copied.
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
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
