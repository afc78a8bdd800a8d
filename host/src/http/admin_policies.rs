//! Routes that publish, activate and roll back policies.

use super::admin_audit::{LocalChangeEntry, SetAsideEntry};
use super::auth::{Admin, IfMatch, Operate, Read, Upload};
use super::extract::{Json as JsonBody, OptionalJson, Path, Query, read_body};
use crate::app::App;
use crate::http::problem::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use nova_control::deploy::{Deploy, PolicyState, Published, Scope, Serving, ServingStatus};
use nova_model::artifact::{Digest, Limits, PerStage, PolicyRef, StageSpec};
use nova_model::lifecycle::{rollback_targets, state_of};
use nova_model::prune::Unused;
use nova_model::quarantine::Quarantine;
use nova_model::registry::PublishedPolicy;
use nova_model::time::UnixMs;
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
    /// The newest changes of this host that the registry refused for good, oldest first. They are
    /// not in force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set_aside_changes: Vec<SetAsideEntry>,
    /// Calls, failures and latency of the serving policies on this host. Null if no host is
    /// running.
    pub serving: Option<ServingStatus>,
    /// Set if there are more policies: the `cursor` of the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The part of the list that a request asks for. Without a limit, it is the whole list.
#[derive(Debug, Default)]
pub struct ListPage {
    limit: Option<usize>,
    after: Option<(UnixMs, PolicyRef)>,
}

const LIST_MAX: u32 = 1_000;

impl ListPage {
    fn from_query(query: &Query) -> Result<Self, Problem> {
        let limit = match query.get("limit") {
            None => None,
            Some(_) => Some(query.limit(LIST_MAX, LIST_MAX)? as usize),
        };
        let after = query.get("cursor").map(|cursor| {
            let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
            let (at_ms, policy) = text.split_once('.')?;
            Some((at_ms.parse().ok()?, policy.parse().ok()?))
        });
        let unreadable = || {
            Problem::invalid_field(
                "cursor",
                "must be `next` of an answer; begin without a cursor",
            )
        };
        let after = after
            .map(|after| after.ok_or_else(unreadable))
            .transpose()?;
        Ok(Self { limit, after })
    }

    /// Returns the policies of the page, and the cursor of the next one. A cursor is a place in the
    /// order of the list, so it is valid also if its policy was removed.
    fn of<'a>(&self, all: &'a [PublishedPolicy]) -> (&'a [PublishedPolicy], Option<String>) {
        let is_before = |published: &PublishedPolicy| match &self.after {
            None => false,
            Some((at_ms, policy)) => place(published) <= place_of(*at_ms, policy),
        };
        let rest = &all[all.partition_point(is_before)..];
        let page = &rest[..self.limit.unwrap_or(rest.len()).min(rest.len())];
        let next = page.last().filter(|_| page.len() < rest.len());
        // In base64, because a version may have a plus sign, which is a space in a query.
        let text = next.map(|last| format!("{}.{}", last.published_at_ms, last.spec.policy));
        (page, text.map(|text| URL_SAFE_NO_PAD.encode(text)))
    }
}

/// Returns the place of a policy in the list.
fn place(published: &PublishedPolicy) -> (UnixMs, String, String) {
    place_of(published.published_at_ms, &published.spec.policy)
}

fn place_of(at_ms: UnixMs, policy: &PolicyRef) -> (UnixMs, String, String) {
    (at_ms, policy.name.clone(), policy.version.to_string())
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
        Self::page_of_host(deploy, &ListPage::default())
    }

    fn page_of_host(deploy: &Deploy, page: &ListPage) -> Self {
        let serving = deploy.serving();
        let (policies, next) = page.of(&serving.state.policies);
        Self {
            policies: policies
                .iter()
                .map(|policy| PolicyEntry::new(policy, &serving))
                .collect(),
            active: serving.active.spec.policy.clone(),
            previous: rollback_targets(&serving.state).next().cloned(),
            local_changes: LocalChangeEntry::all(deploy),
            set_aside_changes: SetAsideEntry::all(deploy),
            serving: None,
            next,
        }
    }
}

/// Lists the published policies with their states, the oldest publication first, and the health of
/// those that serve.
#[utoipa::path(get, path = "/admin/v1/policies", tag = "admin", security(("admin" = [])),
    params(("limit" = Option<u32>, Query, description = "1 … 1,000; without it, the list is whole"),
        ("cursor" = Option<String>, Query, description = "`next` of the answer before: returns the policies after it")),
    responses((status = 200, body = PolicyList), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub async fn list(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    query: Query,
) -> Result<Json<PolicyList>, Problem> {
    let page = ListPage::from_query(&query)?;
    let thresholds = app.live().failure_budget.thresholds();
    Ok(Json(PolicyList {
        serving: Some(app.deploy.status(&thresholds, Instant::now())),
        ..PolicyList::page_of_host(&app.deploy, &page)
    }))
}

#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PruneBody {
    /// If true, nothing is removed, and the answer has what would be.
    pub dry_run: bool,
}

/// What a clean-up removes.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PruneAnswer {
    #[schema(value_type = Vec<String>)]
    pub policies: Vec<PolicyRef>,
    /// Digests of modules without a policy.
    #[schema(value_type = Vec<String>)]
    pub modules: Vec<Digest>,
    /// Bytes of these modules.
    pub bytes: u64,
    /// True if another request removes more.
    pub more: bool,
    pub dry_run: bool,
}

impl PruneAnswer {
    pub fn new(unused: Unused, dry_run: bool) -> Self {
        Self {
            policies: unused.policies,
            modules: unused.modules,
            bytes: unused.bytes,
            more: unused.more,
            dry_run,
        }
    }
}

/// Removes `-dev.N` versions that nothing uses, and modules without a policy. What activations,
/// rollbacks, experiments or quarantines need stays. The body may be empty.
#[utoipa::path(post, path = "/admin/v1/policies/prune", tag = "admin", security(("admin" = [])), params(IfMatch),
    request_body = Option<PruneBody>,
    responses((status = 200, body = PruneAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem), (status = 503, body = Problem)))]
pub async fn prune(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    OptionalJson(body): OptionalJson<PruneBody>,
) -> Result<Json<PruneAnswer>, Problem> {
    let unused = app.deploy.prune(body.dry_run, admin.author()).await?;
    Ok(Json(PruneAnswer::new(unused, body.dry_run)))
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
#[utoipa::path(post, path = "/admin/v1/policies", tag = "admin", security(("admin" = [])), params(IfMatch),
    request_body(content = PolicyUpload, content_type = "multipart/form-data"),
    responses((status = 201, body = PolicyAnswer), (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 413, body = Problem), (status = 422, body = Problem), (status = 412, body = Problem), (status = 503, body = Problem)))]
pub async fn upload(
    State(app): State<Arc<App>>,
    admin: Admin<Upload>,
    request: Request,
) -> Result<(StatusCode, Json<PolicyAnswer>), Problem> {
    let _place = app.uploads.place().await?;
    let files = read_upload(request, app.live().limits.upload_bytes_max).await?;
    let published = app.deploy.publish(files, admin.author()).await?;
    Ok((StatusCode::CREATED, Json(published.into())))
}

/// Largest number of files in an upload. A policy has three modules and two files of a signature.
const FILES_MAX: usize = 16;

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
            (_, Some(_)) if files.modules.len() == FILES_MAX => {
                return Err(Problem::invalid_field(
                    "module",
                    format!("at most {FILES_MAX} files are allowed"),
                ));
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

#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ActivateBody {
    /// The policy that the caller expects to be active, as `name@version`. If another policy is
    /// active, nothing changes and the response is 409.
    #[schema(value_type = Option<String>)]
    pub expected_active: Option<PolicyRef>,
}

/// Makes a policy the active one. The first feed request after the response uses it. The body may be
/// empty.
#[utoipa::path(post, path = "/admin/v1/policies/{name}/{version}/activate", tag = "admin", security(("admin" = [])),
    params(IfMatch, ("name" = String, Path), ("version" = String, Path)), request_body = Option<ActivateBody>,
    responses((status = 200, body = PolicyAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem), (status = 412, body = Problem)))]
pub async fn activate(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    Path(path): Path<(String, String)>,
    OptionalJson(body): OptionalJson<ActivateBody>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let policy = policy_ref(path)?;
    let author = admin.author().expecting(body.expected_active.as_ref());
    let activated = app.deploy.activate(&policy, author).await?;
    Ok(Json(activated.into()))
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
#[utoipa::path(post, path = "/admin/v1/rollback", tag = "admin", security(("admin" = [])), params(IfMatch),
    request_body = RollbackBody,
    responses((status = 200, body = PolicyAnswer), (status = 403, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem), (status = 412, body = Problem)))]
pub async fn rollback(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    JsonBody(body): JsonBody<RollbackBody>,
) -> Result<Json<PolicyAnswer>, Problem> {
    let rolled_back = app
        .deploy
        .rollback(&body.reason, body.expected_active.as_ref(), admin.author())
        .await?;
    Ok(Json(rolled_back.into()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn published(name: &str, at_ms: UnixMs) -> PublishedPolicy {
        let digest = Digest::from_content(b"module");
        let stage = serde_json::json!({"module": digest, "params": {}});
        let spec = serde_json::json!({
            "policy": name, "description": "",
            "stages": {"dedup": stage, "score": stage, "saturation": stage},
            "limits": {"deadline_ms": 20, "memory_mb": 16, "instance": "fresh"},
        });
        PublishedPolicy {
            spec: serde_json::from_value(spec).unwrap(),
            digest,
            published_at_ms: at_ms,
        }
    }

    #[test]
    fn the_pages_together_are_the_list_also_if_a_policy_is_removed_between_them() {
        let mut all: Vec<PublishedPolicy> = ["a@1.0.0", "b@1.0.0", "b@1.0.0-dev.1", "c@1.0.0+x"]
            .iter()
            .zip([1, 2, 2, 3])
            .map(|(name, at_ms)| published(name, at_ms))
            .collect();
        let whole = ListPage::default();
        assert_eq!(whole.of(&all), (all.as_slice(), None));
        let mut page = ListPage {
            limit: Some(1),
            after: None,
        };
        let mut seen = Vec::new();
        loop {
            let (policies, next) = page.of(&all);
            seen.extend(policies.iter().map(|p| p.spec.policy.to_string()));
            let Some(next) = next else { break };
            let query = format!("/?limit=1&cursor={next}").parse().unwrap();
            let query = Query::from_uri(&query);
            page = ListPage::from_query(&query).unwrap();
            if seen.len() == 2 {
                all.remove(1);
            }
        }
        assert_eq!(seen, ["a@1.0.0", "b@1.0.0", "b@1.0.0-dev.1", "c@1.0.0+x"]);
    }
}
