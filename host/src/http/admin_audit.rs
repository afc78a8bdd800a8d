//! The audit log: who changed what, page by page.

use super::auth::{Admin, Read};
use super::extract::Query;
use crate::app::App;
use crate::error::Problem;
use crate::policy::audit::{AuditEntry, AuditPage};
use crate::policy::deploy::DeployError;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AuditLog {
    /// Newest first; oldest first after `after`.
    pub entries: Vec<AuditEntry>,
}

const AUDIT_DEFAULT: u32 = 100;
pub const AUDIT_MAX: u32 = 1_000;

/// Who changed what, newest first. Each entry carries the hash of the one before it.
#[utoipa::path(get, path = "/admin/v1/audit", tag = "admin", security(("admin" = [])),
    params(("limit" = Option<u32>, Query, description = "1 … 1,000, default 100"),
        ("before" = Option<i64>, Query, description = "an id: entries that are older, newest first"),
        ("after" = Option<i64>, Query, description = "an id: entries that are newer, oldest first; 0 for the oldest")),
    responses((status = 200, body = AuditLog), (status = 400, body = Problem), (status = 403, body = Problem), (status = 503, body = Problem)))]
pub async fn audit(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    query: Query,
) -> Result<Json<AuditLog>, Problem> {
    let limit = query.limit(AUDIT_DEFAULT, AUDIT_MAX)?;
    let registry = app.deploy.registry();
    let entries = registry.audit(page(&query)?, limit).await;
    Ok(Json(AuditLog {
        entries: entries.map_err(DeployError::from)?,
    }))
}

fn page(query: &Query) -> Result<AuditPage, Problem> {
    let id = |name: &str, text: &str| {
        text.parse()
            .map_err(|_| Problem::invalid_field(name, "must be the id of an entry"))
    };
    match (query.get("before"), query.get("after")) {
        (None, None) => Ok(AuditPage::NEWEST),
        (Some(before), None) => Ok(AuditPage::Before(id("before", before)?)),
        (None, Some(after)) => Ok(AuditPage::After(id("after", after)?)),
        (Some(_), Some(_)) => Err(Problem::invalid_field(
            "after",
            "cannot be given together with before",
        )),
    }
}
