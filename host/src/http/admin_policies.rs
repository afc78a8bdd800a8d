//! Routes that publish, activate and roll back policies.

use super::admin_audit::LocalChangeEntry;
use super::auth::{Admin, Operate, Read, Upload};
use super::extract::{Json as JsonBody, Path, read_body};
use crate::app::App;
use crate::http::problem::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use nova_control::deploy::{Deploy, PolicyState, Published, Scope, Serving, ServingStatus};
use nova_model::artifact::PolicyRef;
use nova_model::artifact::{Limits, PerStage, StageSpec};
use nova_model::lifecycle::{rollback_targets, state_of};
use nova_model::quarantine::Quarantine;
use nova_model::registry::PublishedPolicy;
use nova_policy::admission::PolicyFiles;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PolicyAnswer {
    pub name: String,
    pub version: String,
    pub digest: String,
    pub state: PolicyState,
    /// Share of viewers in percent, if the policy is a canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// Set if the registry does not answer. The change is in force on this host only, and on all
    /// hosts once the registry answers again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
}

impl From<Published> for PolicyAnswer {
    fn from(published: Published) -> Self {
        Self {
            name: published.policy.name,
            version: published.policy.version.to_string(),
            digest: published.digest.to_string(),
            state: published.state,
            percent: published.percent,
            local: false,
        }
    }
}

impl From<(Published, Scope)> for PolicyAnswer {
    fn from((published, scope): (Published, Scope)) -> Self {
        Self {
            local: scope == Scope::ThisHost,
            ..published.into()
        }
    }
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PolicyList {
    pub policies: Vec<PolicyEntry>,
    /// The active policy, as `name@version`.
    #[schema(value_type = String)]
    pub active: PolicyRef,
    /// The policy that a rollback returns to.
    #[schema(value_type = Option<String>)]
    pub previous: Option<PolicyRef>,
    /// Changes that this host made while the registry was unavailable and that the registry does
    /// not have yet, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub local_changes: Vec<LocalChangeEntry>,
    /// Calls, failures and latency of the serving policies on this host. Null if no host is
    /// running.
    pub serving: Option<ServingStatus>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PolicyEntry {
    pub name: String,
    pub version: String,
    pub digest: String,
    pub state: PolicyState,
    /// Share of viewers in percent, if the policy is a canary.
    pub percent: Option<f64>,
    pub quarantine: Option<Quarantine>,
    pub description: String,
    pub published_at: DateTime<Utc>,
    pub limits: Limits,
    #[schema(value_type = Object)]
    pub stages: PerStage<StageSpec>,
}

impl PolicyEntry {
    fn new(published: &PublishedPolicy, serving: &Serving) -> Self {
        let spec = &published.spec;
        let state = &serving.state;
        let canary = state.canary.as_ref().filter(|c| c.policy == spec.policy);
        Self {
            name: spec.policy.name.clone(),
            version: spec.policy.version.to_string(),
            digest: published.digest.to_string(),
            state: state_of(state, &spec.policy).unwrap_or(PolicyState::Published),
            percent: canary.map(|canary| canary.percent),
            quarantine: state.quarantined.get(&published.digest).cloned(),
            description: spec.description.clone(),
            published_at: nova_model::time::utc(published.published_at_ms),
            limits: spec.limits,
            stages: spec.stages.clone(),
        }
    }
}

impl PolicyList {
    pub fn of_host(deploy: &Deploy) -> Self {
        let serving = deploy.serving();
        Self {
            policies: serving
                .state
                .policies
                .iter()
                .map(|policy| PolicyEntry::new(policy, &serving))
                .collect(),
            active: serving.active.spec.policy.clone(),
            previous: rollback_targets(&serving.state).next().cloned(),
            local_changes: LocalChangeEntry::all(deploy),
            serving: None,
        }
    }
}

/// Lists every published policy with its state, and the health of those that serve.
#[utoipa::path(get, path = "/admin/v1/policies", tag = "admin", security(("admin" = [])),
    responses((status = 200, body = PolicyList), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub async fn list(State(app): State<Arc<App>>, _admin: Admin<Read>) -> Json<PolicyList> {
    let thresholds = app.live().failure_budget.thresholds();
    Json(PolicyList {
        serving: Some(app.deploy.status(&thresholds, Instant::now())),
        ..PolicyList::of_host(&app.deploy)
    })
}

/// Multipart body of an upload.
#[derive(Debug, utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the multipart body")]
pub struct PolicyUpload {
    /// Content of policy.toml.
    manifest: String,
    /// One part per .wasm file. The file name of the part is the file name of the module.
    #[schema(format = Binary)]
    module: Vec<String>,
}

/// Publishes a policy. If it is refused, the response lists every reason.
#[utoipa::path(post, path = "/admin/v1/policies", tag = "admin", security(("admin" = [])),
    request_body(content = PolicyUpload, content_type = "multipart/form-data"),
    responses((status = 201, body = PolicyAnswer), (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 413, body = Problem), (status = 422, body = Problem)))]
pub async fn upload(
    State(app): State<Arc<App>>,
    admin: Admin<Upload>,
    request: Request,
) -> Result<(StatusCode, Json<PolicyAnswer>), Problem> {
    let files = read_upload(request, app.live().limits.upload_bytes_max).await?;
    let published = app.deploy.publish(files, &admin.actor).await?;
    Ok((StatusCode::CREATED, Json(published.into())))
}

async fn read_upload(request: Request, bytes_max: usize) -> Result<PolicyFiles, Problem> {
    let (parts, body) = request.into_parts();
    let bytes = read_body(body, bytes_max).await?;
    let malformed =
        |error: &dyn std::fmt::Display| Problem::malformed(format!("multipart: {error}"));
    let mut request = Request::from_parts(parts, Body::from(bytes));
    // `read_body` above already limits the body, with the limit that can be reloaded.
    axum::extract::DefaultBodyLimit::disable().apply(&mut request);
    let mut multipart = Multipart::from_request(request, &())
        .await
        .map_err(|error| malformed(&error.body_text()))?;
    let (mut manifest, mut files) = (None, PolicyFiles::default());
    while let Some(field) = multipart
        .next_field()
        .await
        .map_err(|error| malformed(&error.body_text()))?
    {
        let (name, file) = (
            field.name().unwrap_or_default().to_owned(),
            field.file_name().map(str::to_owned),
        );
        let bytes = field
            .bytes()
            .await
            .map_err(|error| malformed(&error.body_text()))?;
        match (name.as_str(), file) {
            ("manifest", _) => {
                let text = String::from_utf8(bytes.to_vec());
                manifest =
                    Some(text.map_err(|_| Problem::invalid_field("manifest", "is not UTF-8"))?);
            }
            (_, Some(file)) => {
                files.modules.insert(file, bytes.to_vec());
            }
            (other, None) => {
                return Err(Problem::invalid_field(
                    other,
                    "is neither `manifest` nor a file; send each module as a file",
                ));
            }
        }
    }
    files.manifest = manifest.ok_or_else(|| {
        Problem::invalid_field("manifest", "is missing; send policy.toml in this part")
    })?;
    Ok(files)
}

/// Makes a policy the active one. The first feed request after the response uses it.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/activate", tag = "admin", security(("admin" = [])),
    params(("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = PolicyAnswer), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub async fn activate(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    Path(path): Path<(String, String)>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    Ok(Json(
        app.deploy.activate(&policy, &admin.actor).await?.into(),
    ))
}

/// Parses the policy named in a path. A name or version that does not parse cannot have been
/// published, so the error is 404.
pub fn policy_ref((name, version): (String, String)) -> Result<PolicyRef, Problem> {
    format!("{name}@{version}")
        .parse()
        .map_err(|_: String| Problem::not_found(format!("no policy {name}@{version} is published")))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackBody {
    /// Reason, for the audit log.
    pub reason: String,
    /// The policy that the caller expects to be active, as `name@version`. If another policy is
    /// active, nothing changes and the response is 409.
    #[schema(value_type = Option<String>)]
    pub expected_active: Option<PolicyRef>,
}

/// Returns to the policy that was active before.
#[utoipa::path(post, path = "/admin/v1/rollback", tag = "admin", security(("admin" = [])),
    request_body = RollbackBody,
    responses((status = 200, body = PolicyAnswer), (status = 403, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub async fn rollback(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    JsonBody(body): JsonBody<RollbackBody>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let rolled_back = app
        .deploy
        .rollback(&body.reason, body.expected_active.as_ref(), &admin.actor)
        .await?;
    Ok(Json(rolled_back.into()))
}
