//! The audit log's rows in PostgreSQL.

use crate::guard::Failure;
use nova_model::artifact::Digest;
use nova_model::audit::{AuditEntry, AuditPage, head_of_unhashed};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

pub(super) async fn read(
    connection: &mut PgConnection,
    page: AuditPage,
    limit: i64,
) -> Result<Vec<AuditEntry>, Failure> {
    let (select, id) = match page {
        AuditPage::Before(id) => (
            "SELECT id, at_ms, actor, action, subject, detail::text, previous_hash, hash FROM audit \
             WHERE id < $1 ORDER BY id DESC LIMIT $2",
            id,
        ),
        AuditPage::After(id) => (
            "SELECT id, at_ms, actor, action, subject, detail::text, previous_hash, hash FROM audit \
             WHERE id > $1 ORDER BY id LIMIT $2",
            id,
        ),
    };
    let rows = sqlx::query(select).bind(id).bind(limit);
    let rows = rows.fetch_all(connection).await?;
    rows.iter().map(entry).collect()
}

fn entry(row: &PgRow) -> Result<AuditEntry, Failure> {
    let digest = |column| {
        let text: Option<&str> = row.try_get(column)?;
        text.map(str::parse).transpose().map_err(unreadable)
    };
    Ok(AuditEntry {
        id: row.try_get("id")?,
        at: chrono::DateTime::from_timestamp_millis(row.try_get("at_ms")?).unwrap_or_default(),
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        subject: row.try_get("subject")?,
        detail: serde_json::from_str(row.try_get("detail")?).map_err(unreadable)?,
        previous_hash: digest("previous_hash")?,
        hash: digest("hash")?,
    })
}

fn unreadable(error: impl std::fmt::Display) -> Failure {
    Failure::permanent(anyhow::anyhow!("could not decode an audit entry: {error}"))
}

/// Returns the hash that the next entry continues. The caller must hold the lock on the
/// registry's revision.
pub(super) async fn head(connection: &mut PgConnection) -> Result<Option<Digest>, Failure> {
    let newest = read(connection, AuditPage::NEWEST, 1).await?;
    match newest.first() {
        Some(newest) if newest.hash.is_none() => {
            let all = read(connection, AuditPage::OLDEST, i64::MAX).await?;
            head_of_unhashed(&all).map_err(unreadable)
        }
        newest => Ok(newest.and_then(|newest| newest.hash)),
    }
}

pub(super) async fn append(
    connection: &mut PgConnection,
    entry: &AuditEntry,
) -> Result<(), Failure> {
    let insert = "INSERT INTO audit (id, at_ms, actor, action, subject, detail, previous_hash, hash) \
         VALUES ($1, $2, $3, $4, $5, $6::json, $7, $8)";
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
        .await?;
    Ok(())
}
