//! The audit log's rows in SQLite.

use super::registry::{corrupt, unavailable};
use crate::ports::registry::RegistryError;
use nova_model::artifact::Digest;
use nova_model::audit::{AuditEntry, AuditPage, head_of_unhashed};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection, SqlitePool};

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
            "SELECT * FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?",
            id,
        ),
        AuditPage::After(id) => ("SELECT * FROM audit WHERE id > ? ORDER BY id LIMIT ?", id),
    };
    let rows = sqlx::query(select).bind(id).bind(limit);
    let rows = rows.fetch_all(connection).await.map_err(unavailable)?;
    rows.iter().map(entry).collect()
}

fn entry(row: &SqliteRow) -> Result<AuditEntry, RegistryError> {
    let digest = |column| {
        let text: Option<&str> = row.get(column);
        text.map(str::parse).transpose().map_err(corrupt)
    };
    Ok(AuditEntry {
        id: row.get("id"),
        at: chrono::DateTime::from_timestamp_millis(row.get("at_ms")).unwrap_or_default(),
        actor: row.get("actor"),
        action: row.get("action"),
        subject: row.get("subject"),
        detail: serde_json::from_str(row.get("detail")).map_err(corrupt)?,
        previous_hash: digest("previous_hash")?,
        hash: digest("hash")?,
    })
}

/// Returns the hash that the next entry continues. It must run in the transaction that writes
/// that entry.
pub(super) async fn head(
    connection: &mut SqliteConnection,
) -> Result<Option<Digest>, RegistryError> {
    let newest = read(connection, AuditPage::NEWEST, 1).await?;
    match newest.first() {
        Some(newest) if newest.hash.is_none() => {
            let all = read(connection, AuditPage::OLDEST, i64::MAX).await?;
            head_of_unhashed(&all).map_err(corrupt)
        }
        newest => Ok(newest.and_then(|newest| newest.hash)),
    }
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
