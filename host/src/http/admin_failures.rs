//! The route that shows the author of a policy how it fails on this host.

use super::admin_policies::policy_ref;
use super::auth::{Admin, Read};
use super::extract::Path;
use crate::app::App;
use crate::http::problem::Problem;
use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use nova_model::artifact::{PolicyRef, Stage};
use nova_model::failure_log::Failures;
use nova_model::time::utc;
use serde::Serialize;
use std::sync::Arc;

/// Failures of a policy on this host since it started, in requests of viewers and in shadow.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct FailureReport {
    /// `name@version`.
    #[schema(value_type = String)]
    pub policy: PolicyRef,
    /// By stage and kind. Empty if there were none.
    pub failures: Vec<FailureEntry>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct FailureEntry {
    #[schema(value_type = String)]
    pub stage: Stage,
    /// The value of `outcome` in `policy_calls_total`. The host causes `pool`, and a `deadline`
    /// that it did not grant whole; the policy causes the others.
    pub kind: &'static str,
    pub count: u64,
    pub first_at: DateTime<Utc>,
    pub last_at: DateTime<Utc>,
    /// What the latest failure said, at most 2,048 bytes: the trap with the functions that led to
    /// it, by number if the module has no names, or the breach of the contract. It names no
    /// viewer.
    pub text: String,
}

impl From<Failures> for FailureEntry {
    fn from(failures: Failures) -> Self {
        Self {
            stage: failures.stage,
            kind: failures.kind.as_str(),
            count: failures.count,
            first_at: utc(failures.first_ms),
            last_at: utc(failures.last_ms),
            text: failures.text,
        }
    }
}

/// Shows how a policy fails on this host: the number of failures by stage and kind, the first and
/// the latest time, and the text of the latest failure.
#[utoipa::path(get, path = "/admin/v1/policies/{name}/{version}/failures", tag = "admin", security(("admin" = [])),
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = FailureReport), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn failures(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    Path(path): Path<(String, String)>,
) -> Result<Json<FailureReport>, Problem> {
    let policy = policy_ref(path)?;
    if app.deploy.serving().state.policy(&policy).is_none() {
        return Err(Problem::not_found(format!(
            "no policy {policy} is published"
        )));
    }
    let failures = app.feed.parts.failures.of(&policy);
    Ok(Json(FailureReport {
        policy,
        failures: failures.into_iter().map(Into::into).collect(),
    }))
}
