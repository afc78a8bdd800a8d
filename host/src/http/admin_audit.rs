//! The audit route: returns the log of administrative changes, page by page.

use super::auth::{Admin, Read};
use super::extract::Query;
use crate::app::App;
use crate::http::problem::Problem;
use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use nova_control::deploy::{Deploy, DeployError};
use nova_control::offline::SetAside;
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::audit_head::AuditHead;
use nova_model::local_change::{Intent, LocalChange};
use nova_stores::ports::registry::RegistryError;
use serde::Serialize;
use std::sync::Arc;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AuditLog {
    /// Newest first. If `after` is given, oldest first.
    pub entries: Vec<AuditEntry>,
    /// Changes that this host made while the registry was unavailable and that the registry does
    /// not have yet, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub local_changes: Vec<LocalChangeEntry>,
    /// Contains `registry` if the registry does not answer. `entries` is then empty because the
    /// log cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<&'static str>,
}

/// A change that this host made while the registry was unavailable.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LocalChangeEntry {
    pub id: uuid::Uuid,
    pub at: DateTime<Utc>,
    pub actor: String,
    pub subject: String,
    /// The `action` and its details.
    #[schema(value_type = Object)]
    pub change: Intent,
}

impl LocalChangeEntry {
    pub fn all(deploy: &Deploy) -> Vec<Self> {
        deploy.local_changes().into_iter().map(Self::from).collect()
    }
}

impl From<LocalChange> for LocalChangeEntry {
    fn from(local: LocalChange) -> Self {
        Self {
            id: local.id,
            at: nova_model::time::utc(local.made_at_ms),
            actor: local.actor,
            subject: local.intent.subject(),
            change: local.intent,
        }
    }
}

/// A change of this host that the registry refused for good. It is not in force.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SetAsideEntry {
    #[serde(flatten)]
    pub local_change: LocalChangeEntry,
    /// The registry's reason.
    pub reason: String,
    pub set_aside_at: DateTime<Utc>,
    /// True if the audit log has an entry about it.
    pub is_audited: bool,
}

impl SetAsideEntry {
    pub fn all(deploy: &Deploy) -> Vec<Self> {
        let entry = |aside: SetAside| Self {
            local_change: aside.change.into(),
            reason: aside.reason,
            set_aside_at: nova_model::time::utc(aside.at_ms),
            is_audited: aside.is_audited,
        };
        deploy.set_aside().into_iter().map(entry).collect()
    }
}

const AUDIT_DEFAULT: u32 = 100;
pub const AUDIT_MAX: u32 = 1_000;

/// Lists administrative changes with their actors, newest first. Each entry contains the hash of
/// the previous entry. A page has fewer entries than `limit` if their details are large; the log
/// ends with an empty page.
#[utoipa::path(get, path = "/admin/v1/audit", tag = "admin", security(("admin" = [])),
    params(("limit" = Option<u32>, Query, description = "1 … 1,000, default 100"),
        ("before" = Option<i64>, Query, description = "id of an entry: returns older entries, newest first"),
        ("after" = Option<i64>, Query, description = "id of an entry: returns newer entries, oldest first; 0 starts with the oldest entry")),
    responses((status = 200, body = AuditLog), (status = 400, body = Problem), (status = 403, body = Problem), (status = 503, body = Problem)))]
pub async fn audit(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    query: Query,
) -> Result<Json<AuditLog>, Problem> {
    let limit = query.limit(AUDIT_DEFAULT, AUDIT_MAX)?;
    let local_changes = LocalChangeEntry::all(&app.deploy);
    let registry = app.deploy.registry();
    match registry.audit(page(&query)?, limit).await {
        Ok(entries) => Ok(Json(AuditLog {
            entries,
            local_changes,
            degraded: Vec::new(),
        })),
        // An operator who rolled back while the registry was unavailable looks for that change
        // here.
        Err(RegistryError::Unavailable(_)) if !local_changes.is_empty() => Ok(Json(AuditLog {
            entries: Vec::new(),
            local_changes,
            degraded: vec!["registry"],
        })),
        Err(error) => Err(DeployError::from(error).into()),
    }
}

/// The end of the audit log, and what this host remembers of it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AuditHeadAnswer {
    #[serde(flatten)]
    pub head: AuditHead,
    /// The entry up to which this host read the log without a finding.
    pub remembered: Option<AuditHead>,
    /// True if a known key authenticated an entry up to the remembered one. Every later entry must
    /// then be authenticated.
    pub authenticated: bool,
    /// What is wrong with the log, as this host read it. Null if it continues what the host
    /// remembers.
    pub finding: Option<String>,
    /// True if this host has a key that authenticates entries.
    pub has_key: bool,
}

/// Returns the newest entry's id and hash. A person who notes them can check later if entries were
/// removed.
#[utoipa::path(get, path = "/admin/v1/audit/head", tag = "admin", security(("admin" = [])),
    responses((status = 200, body = AuditHeadAnswer), (status = 403, body = Problem), (status = 503, body = Problem)))]
pub async fn head(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
) -> Result<Json<AuditHeadAnswer>, Problem> {
    let head = app.deploy.registry().head().await;
    let report = app.deploy.audit_report();
    Ok(Json(AuditHeadAnswer {
        head: head.map_err(DeployError::from)?,
        remembered: report.remembered.map(|remembered| remembered.head),
        authenticated: (report.remembered).is_some_and(|remembered| remembered.authenticated),
        finding: report.finding.as_ref().map(ToString::to_string),
        has_key: report.has_keys,
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
            "cannot be combined with before; give one of the two",
        )),
    }
}
