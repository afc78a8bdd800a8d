//! The audit log's rows in SQLite.

use crate::ports::RegistryError;
use crate::registry::{AUDIT_PAGE_BYTES, AuditRow, audit_entry};
use nova_model::audit::{AuditEntry, AuditPage};
use sqlx::{SqliteConnection, SqlitePool};

/// Columns that an older log does not have.
const ADDED: [(&str, &str); 3] = [
    (
        "previous_hash",
        "ALTER TABLE audit ADD COLUMN previous_hash TEXT",
    ),
    ("hash", "ALTER TABLE audit ADD COLUMN hash TEXT"),
    ("mac", "ALTER TABLE audit ADD COLUMN mac TEXT"),
];

/// Adds the columns that an older log does not have, and a trigger that rejects entries without a
/// hash.
pub(super) async fn prepare(writer: &SqlitePool) -> Result<(), sqlx::Error> {
    // IMMEDIATE: if two processes open the file at once, only one of them adds the columns.
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    for (column, add) in ADDED {
        let find = "SELECT count(*) FROM pragma_table_info('audit') WHERE name = ?";
        let find = sqlx::query_scalar(find).bind(column);
        let found: i64 = find.fetch_one(&mut *tx).await?;
        if found == 0 {
            sqlx::raw_sql(add).execute(&mut *tx).await?;
        }
    }
    let refuse = "CREATE TRIGGER IF NOT EXISTS audit_is_chained BEFORE INSERT ON audit WHEN NEW.hash IS NULL \
         BEGIN SELECT RAISE(ABORT, 'the audit log is chained: use the newer nova that made it so'); END";
    sqlx::raw_sql(refuse).execute(&mut *tx).await?;
    // Also refuses the entries of an older program, which authenticates none.
    let refuse = "CREATE TRIGGER IF NOT EXISTS audit_stays_authenticated BEFORE INSERT ON audit \
         WHEN NEW.mac IS NULL AND (SELECT mac FROM audit ORDER BY id DESC LIMIT 1) IS NOT NULL \
         BEGIN SELECT RAISE(ABORT, 'the audit log is authenticated: use the newer nova that made it so'); END";
    sqlx::raw_sql(refuse).execute(&mut *tx).await?;
    for (event, name) in [
        ("UPDATE", "audit_is_not_changed"),
        ("DELETE", "audit_is_not_removed"),
    ] {
        let refuse = format!(
            "CREATE TRIGGER IF NOT EXISTS {name} BEFORE {event} ON audit \
             BEGIN SELECT RAISE(ABORT, 'entries of the audit log are never changed or removed'); END"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(refuse))
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await
}

/// Selects the entries of a page: first the ids within both limits, then these rows. SQLite knows
/// the length of a detail without reading it.
macro_rules! page {
    ($beyond:literal, $order:literal) => {
        concat!(
            "SELECT id, at_ms, actor, action, subject, detail, previous_hash, hash, mac FROM audit ",
            "WHERE id IN (SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY id ",
            $order,
            ") - bytes AS before FROM (SELECT id, octet_length(detail) AS bytes FROM audit WHERE id ",
            $beyond,
            " ? ORDER BY id ",
            $order,
            " LIMIT ?)) WHERE before < ?) ORDER BY id ",
            $order
        )
    };
}

pub(super) async fn read(
    connection: &mut SqliteConnection,
    page: AuditPage,
    limit: i64,
) -> Result<Vec<AuditEntry>, RegistryError> {
    let (select, id) = match page {
        AuditPage::Before(id) => (page!("<", "DESC"), id),
        AuditPage::After(id) => (page!(">", "ASC"), id),
    };
    let rows = sqlx::query_as(select)
        .bind(id)
        .bind(limit)
        .bind(AUDIT_PAGE_BYTES);
    let rows: Vec<AuditRow> = rows.fetch_all(connection).await.map_err(failed)?;
    rows.into_iter()
        .map(|row| audit_entry(row).map_err(corrupt))
        .collect()
}

pub(super) async fn append(
    connection: &mut SqliteConnection,
    entry: &AuditEntry,
) -> Result<(), RegistryError> {
    let insert = "INSERT INTO audit (id, at_ms, actor, action, subject, detail, previous_hash, hash, mac) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    sqlx::query(insert)
        .bind(entry.id)
        .bind(entry.at.timestamp_millis())
        .bind(&entry.actor)
        .bind(&entry.action)
        .bind(&entry.subject)
        .bind(entry.detail.to_string())
        .bind(entry.previous_hash.map(|hash| hash.to_string()))
        .bind(entry.hash.map(|hash| hash.to_string()))
        .bind(entry.mac.map(|mac| mac.to_string()))
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

pub(super) fn failed(error: sqlx::Error) -> RegistryError {
    let error = anyhow::Error::from(error);
    match super::is_retryable(&error) {
        true => RegistryError::Unavailable(error),
        false => RegistryError::Refused(error),
    }
}

pub(super) fn corrupt(error: impl std::fmt::Display) -> RegistryError {
    RegistryError::Refused(anyhow::anyhow!(
        "could not decode a row of the policy registry: {error}"
    ))
}
