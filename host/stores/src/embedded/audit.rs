//! The audit log's rows in SQLite.

use crate::ports::RegistryError;
use crate::registry::{AuditRow, audit_entry};
use nova_model::audit::{AuditEntry, AuditPage};
use sqlx::{SqliteConnection, SqlitePool};

/// Adds the hash columns to a log that is older than the hash chain, and a trigger that rejects
/// entries without a hash.
pub(super) async fn prepare(writer: &SqlitePool) -> Result<(), sqlx::Error> {
    // IMMEDIATE: if two processes open the file at once, only one of them adds the columns.
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let find = "SELECT count(*) FROM pragma_table_info('audit') WHERE name = 'hash'";
    let found: i64 = sqlx::query_scalar(find).fetch_one(&mut *tx).await?;
    if found == 0 {
        let add = "ALTER TABLE audit ADD COLUMN previous_hash TEXT; ALTER TABLE audit ADD COLUMN hash TEXT";
        sqlx::raw_sql(add).execute(&mut *tx).await?;
    }
    let refuse = "CREATE TRIGGER IF NOT EXISTS audit_is_chained BEFORE INSERT ON audit WHEN NEW.hash IS NULL \
         BEGIN SELECT RAISE(ABORT, 'the audit log is chained: use the newer nova that made it so'); END";
    sqlx::raw_sql(refuse).execute(&mut *tx).await?;
    tx.commit().await
}

pub(super) async fn read(
    connection: &mut SqliteConnection,
    page: AuditPage,
    limit: i64,
) -> Result<Vec<AuditEntry>, RegistryError> {
    let (select, id) = match page {
        AuditPage::Before(id) => (
            "SELECT id, at_ms, actor, action, subject, detail, previous_hash, hash FROM audit \
             WHERE id < ? ORDER BY id DESC LIMIT ?",
            id,
        ),
        AuditPage::After(id) => (
            "SELECT id, at_ms, actor, action, subject, detail, previous_hash, hash FROM audit \
             WHERE id > ? ORDER BY id LIMIT ?",
            id,
        ),
    };
    let rows = sqlx::query_as(select).bind(id).bind(limit);
    let rows: Vec<AuditRow> = rows.fetch_all(connection).await.map_err(unavailable)?;
    rows.into_iter()
        .map(|row| audit_entry(row).map_err(corrupt))
        .collect()
}

pub(super) async fn append(
    connection: &mut SqliteConnection,
    entry: &AuditEntry,
) -> Result<(), RegistryError> {
    let insert = "INSERT INTO audit (id, at_ms, actor, action, subject, detail, previous_hash, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    sqlx::query(insert)
        .bind(entry.id)
        .bind(entry.at.timestamp_millis())
        .bind(&entry.actor)
        .bind(&entry.action)
        .bind(&entry.subject)
        .bind(entry.detail.to_string())
        .bind(entry.previous_hash.map(|hash| hash.to_string()))
        .bind(entry.hash.map(|hash| hash.to_string()))
        .execute(connection)
        .await
        .map_err(unavailable)?;
    Ok(())
}

pub(super) fn unavailable(error: sqlx::Error) -> RegistryError {
    RegistryError::Unavailable(error.into())
}

pub(super) fn corrupt(error: impl std::fmt::Display) -> RegistryError {
    RegistryError::Unavailable(anyhow::anyhow!(
        "could not decode a row of the policy registry: {error}"
    ))
}
