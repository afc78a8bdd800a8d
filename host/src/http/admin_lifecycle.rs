//! Routes of a policy's lifecycle other than activation: shadow, canary, retirement, quarantine
//! and lift.

use super::admin_policies::{PolicyAnswer, policy_ref};
use super::auth::{Admin, IfMatch, Operate, Read, Upload};
use super::extract::{Json as JsonBody, Path};
use crate::app::App;
use crate::feed::shadow::ShadowReport;
use crate::http::problem::Problem;
use axum::Json;
use axum::extract::State;
use nova_model::artifact::PolicyRef;
use serde::Deserialize;
use std::sync::Arc;

/// Puts a policy into shadow: it ranks the same candidates as the serving policies, and its
/// rankings are compared but never served.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/shadow", tag = "admin", security(("admin" = [])),
    params(IfMatch, ("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = PolicyAnswer), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem), (status = 412, body = Problem)))]
pub async fn shadow(
    State(app): State<Arc<App>>,
    admin: Admin<Upload>,
    Path(path): Path<(String, String)>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    Ok(Json(
        app.deploy.shadow(&policy, admin.author()).await?.into(),
    ))
}

/// Ends a policy's shadow state.
#[utoipa::path(delete, path = "/admin/v1/policies/{name}/{version}/shadow", tag = "admin", security(("admin" = [])),
    params(IfMatch, ("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = PolicyAnswer), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem), (status = 412, body = Problem)))]
pub async fn end_shadow(
    State(app): State<Arc<App>>,
    admin: Admin<Upload>,
    Path(path): Path<(String, String)>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    let ended = app.deploy.end_shadow(&policy, admin.author()).await?;
    Ok(Json(ended.into()))
}

/// Reports the shadow runs of a policy on this host and the differences between its rankings and
/// the served ones.
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
    Ok(Json(app.feed.parts.shadows.report(shadow)))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CanaryBody {
    /// Share of the viewers who are in no experiment, 0 … 100 in steps of 0.01. If the share
    /// grows, viewers who are already in it stay in it. 0 ends a canary or a shadow.
    pub percent: f64,
    /// The policy that the caller expects to be active, as `name@version`. If another policy is
    /// active, nothing changes and the response is 409.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub expected_active: Option<PolicyRef>,
}

/// Serves a policy to a share of the viewers. Only one policy at a time can be the canary.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/canary", tag = "admin", security(("admin" = [])),
    params(IfMatch, ("name" = String, Path), ("version" = String, Path)), request_body = CanaryBody,
    responses((status = 200, body = PolicyAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 503, body = Problem), (status = 412, body = Problem)))]
pub async fn canary(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    Path(path): Path<(String, String)>,
    JsonBody(body): JsonBody<CanaryBody>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    let published = app
        .deploy
        .canary(
            &policy,
            body.percent,
            admin.author().expecting(body.expected_active.as_ref()),
        )
        .await?;
    Ok(Json(published.into()))
}

/// Retires a version permanently: it no longer serves any viewer, and rollbacks skip it.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/retire", tag = "admin", security(("admin" = [])),
    params(IfMatch, ("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = PolicyAnswer), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem), (status = 412, body = Problem)))]
pub async fn retire(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    Path(path): Path<(String, String)>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    Ok(Json(
        app.deploy.retire(&policy, admin.author()).await?.into(),
    ))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuarantineBody {
    /// Reason, for the audit log.
    pub reason: String,
}

/// Takes a policy out of service under every name that its behaviour was published with. If it
/// is active, the host rolls back; experiments that use it are paused. The quarantine lasts until
/// an operator lifts it.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/quarantine", tag = "admin", security(("admin" = [])),
    params(IfMatch, ("name" = String, Path), ("version" = String, Path)), request_body = QuarantineBody,
    responses((status = 200, body = PolicyAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem), (status = 412, body = Problem)))]
pub async fn quarantine(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    Path(path): Path<(String, String)>,
    JsonBody(body): JsonBody<QuarantineBody>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    // A quarantine is in force before it waits for other changes, so its precondition is checked
    // before it begins.
    app.deploy.require_state(admin.author()).await?;
    let published = app
        .deploy
        .quarantine(&policy, &body.reason, &admin.actor)
        .await?;
    Ok(Json(published.into()))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LiftBody {
    /// Reason, for the audit log.
    pub reason: String,
}

/// Lets a policy serve again: ends its quarantine and its withdrawals on all hosts, and those of
/// its variations. Each host drops its own withdrawal when it sees the lift, and counts failures
/// anew. What followed from a quarantine stays: activate the policy and start experiments again.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/lift", tag = "admin", security(("admin" = [])),
    params(("name" = String, Path), ("version" = String, Path)), request_body = LiftBody,
    responses((status = 200, body = PolicyAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 503, body = Problem)))]
pub async fn lift(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    Path(path): Path<(String, String)>,
    JsonBody(body): JsonBody<LiftBody>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    let lifted = app
        .deploy
        .lift(&policy, &body.reason, admin.author())
        .await?;
    Ok(Json(lifted.into()))
}
