//! The steps of a policy's life besides activation: shadow, canary, retirement, quarantine.

use super::admin_policies::{PolicyAnswer, policy_ref};
use super::auth::{Admin, Operate, Read, Upload};
use super::extract::{Json as JsonBody, Path};
use crate::app::App;
use crate::error::Problem;
use crate::feed::shadow::ShadowReport;
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use std::sync::Arc;

/// Ranks beside the active policy from now on, for nobody.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/shadow", tag = "admin", security(("admin" = [])),
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = PolicyAnswer), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub async fn shadow(
    State(app): State<Arc<App>>,
    admin: Admin<Upload>,
    Path(path): Path<(String, String)>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    Ok(Json(app.deploy.shadow(&policy, &admin.actor).await?.into()))
}

/// Ends a shadow.
#[utoipa::path(delete, path = "/admin/v1/policies/{name}/{version}/shadow", tag = "admin", security(("admin" = [])),
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = PolicyAnswer), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub async fn end_shadow(
    State(app): State<Arc<App>>,
    admin: Admin<Upload>,
    Path(path): Path<(String, String)>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    let ended = app.deploy.end_shadow(&policy, &admin.actor).await?;
    Ok(Json(ended.into()))
}

/// How a policy in shadow is doing on this host, and how its rankings differ from those that were served.
#[utoipa::path(get, path = "/admin/v1/policies/{name}/{version}/shadow", tag = "admin", security(("admin" = [])),
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = ShadowReport), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn shadow_report(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    Path(path): Path<(String, String)>,
) -> Result<Json<ShadowReport>, Problem> {
    let policy = policy_ref(path)?;
    let serving = app.deploy.serving();
    let shadow = serving.shadows.iter().find(|p| p.spec.policy == policy);
    let shadow = shadow.ok_or_else(|| Problem::not_found(format!("{policy} is not in shadow")))?;
    Ok(Json(app.shadows.report(shadow)))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CanaryBody {
    /// Of the viewers whom no experiment takes, 0 … 100 in steps of 0.01. Growing it keeps those who are in. 0 ends
    /// a canary or a shadow.
    pub percent: f64,
}

/// Serves a share of viewers. One policy at a time can be the canary.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/canary", tag = "admin", security(("admin" = [])),
    params(("name" = String, Path), ("version" = String, Path)), request_body = CanaryBody,
    responses((status = 200, body = PolicyAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 503, body = Problem)))]
pub async fn canary(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    Path(path): Path<(String, String)>,
    JsonBody(body): JsonBody<CanaryBody>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    let published = app
        .deploy
        .canary(&policy, body.percent, &admin.actor)
        .await?;
    Ok(Json(published.into()))
}

/// Ends a version's life: it serves nobody, and rollbacks skip it.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/retire", tag = "admin", security(("admin" = [])),
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = PolicyAnswer), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub async fn retire(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    Path(path): Path<(String, String)>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    Ok(Json(app.deploy.retire(&policy, &admin.actor).await?.into()))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuarantineBody {
    /// For the audit log.
    pub reason: String,
}

/// Serves nobody any more, under whatever name it was published. The active policy rolls back, experiments with it
/// pause. There is no way back: publish a changed version.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/quarantine", tag = "admin", security(("admin" = [])),
    params(("name" = String, Path), ("version" = String, Path)), request_body = QuarantineBody,
    responses((status = 200, body = PolicyAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub async fn quarantine(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    Path(path): Path<(String, String)>,
    JsonBody(body): JsonBody<QuarantineBody>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    let published = app
        .deploy
        .quarantine(&policy, &body.reason, &admin.actor)
        .await?;
    Ok(Json(published.into()))
}
