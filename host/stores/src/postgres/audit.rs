//! The audit log's rows in PostgreSQL.

use crate::guard::Failure;
use crate::registry::{AuditRow, audit_entry};
use nova_model::audit::{AuditEntry, AuditPage};
use sqlx::PgConnection;

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
    let rows = sqlx::query_as(select).bind(id).bind(limit);
    let rows: Vec<AuditRow> = rows.fetch_all(connection).await?;
    rows.into_iter()
        .map(|row| audit_entry(row).map_err(unreadable))
        .collect()
}

fn unreadable(error: impl std::fmt::Display) -> Failure {
    Failure::permanent(anyhow::anyhow!("could not decode an audit entry: {error}"))
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
