//! The audit log's rows in PostgreSQL.

use crate::guard::Failure;
use crate::registry::{AUDIT_PAGE_BYTES, AuditRow, audit_entry};
use nova_model::audit::{AuditEntry, AuditPage};
use sqlx::PgConnection;

/// Selects the entries of a page: first the ids within both limits, then these rows. The inner
/// queries read no details, so a page costs what it returns.
macro_rules! page {
    ($beyond:literal, $order:literal) => {
        concat!(
            "SELECT id, at_ms, actor, action, subject, detail::text, previous_hash, hash, mac FROM audit ",
            "WHERE id IN (SELECT id FROM (SELECT id, sum(detail_bytes) OVER (ORDER BY id ",
            $order,
            ") - detail_bytes AS before FROM (SELECT id, detail_bytes FROM audit WHERE id ",
            $beyond,
            " $1 ORDER BY id ",
            $order,
            " LIMIT $2) page) sized WHERE before < $3) ORDER BY id ",
            $order
        )
    };
}

pub(super) async fn read(
    connection: &mut PgConnection,
    page: AuditPage,
    limit: i64,
) -> Result<Vec<AuditEntry>, Failure> {
    let (select, id) = match page {
        AuditPage::Before(id) => (page!("<", "DESC"), id),
        AuditPage::After(id) => (page!(">", "ASC"), id),
    };
    let rows = sqlx::query_as(select)
        .bind(id)
        .bind(limit)
        .bind(AUDIT_PAGE_BYTES);
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
    let insert = "INSERT INTO audit (id, at_ms, actor, action, subject, detail, previous_hash, hash, mac) \
         VALUES ($1, $2, $3, $4, $5, $6::json, $7, $8, $9)";
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
        .await?;
    Ok(())
}
