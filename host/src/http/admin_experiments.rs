//! Routes of cohorts and experiments.

use super::auth::{Admin, Experiment as MayExperiment, IfMatch, Read};
use super::extract::{Json as JsonBody, Path};
use crate::app::App;
use crate::http::problem::Problem;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use nova_control::deploy::{Author, Scope};
use nova_model::experiments::cohort::Rule;
use nova_model::experiments::spec::{ExperimentSpec, ExperimentState};
use nova_model::exposure::VariationCount;
use nova_model::registry::Experiment;
use serde::Serialize;
use std::sync::Arc;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CohortAnswer {
    pub key: String,
    pub rule: Rule,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ExperimentAnswer {
    pub key: String,
    pub state: ExperimentState,
    /// Set if the registry does not answer. The experiment is stopped on this host only, and on
    /// all hosts once the registry answers again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    #[serde(flatten)]
    pub spec: ExperimentSpec,
}

impl ExperimentAnswer {
    fn new(key: String, experiment: Experiment, scope: Scope) -> Json<Self> {
        Json(Self {
            key,
            state: experiment.state,
            local: scope == Scope::ThisHost,
            spec: experiment.spec,
        })
    }
}

fn created(new: bool) -> StatusCode {
    if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    }
}

/// Checks a key. Keys appear in URLs and in metric labels, so their characters and length are
/// limited.
fn check_key(key: &str) -> Result<(), Problem> {
    let plain = (1..=64).contains(&key.len())
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if plain {
        Ok(())
    } else {
        Err(Problem::invalid_field(
            "key",
            "use 1–64 letters, digits, `-`, `_` or `.`",
        ))
    }
}

/// Returns the rule of a cohort.
#[utoipa::path(get, path = "/admin/v1/cohorts/{key}", tag = "admin", security(("admin" = [])), params(("key" = String, Path)),
    responses((status = 200, body = CohortAnswer), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn get_cohort(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    Path(key): Path<String>,
) -> Result<Json<CohortAnswer>, Problem> {
    let known = app.deploy.serving().state.cohorts.get(&key).cloned();
    let rule = known.or_else(|| (key == "all").then(Rule::everybody));
    let rule = rule.ok_or_else(|| Problem::not_found(format!("there is no cohort `{key}`")))?;
    Ok(Json(CohortAnswer { key, rule }))
}

/// Creates or changes a cohort.
#[utoipa::path(put, path = "/admin/v1/cohorts/{key}", tag = "admin", security(("admin" = [])), params(IfMatch, ("key" = String, Path)),
    request_body = Rule,
    responses((status = 200, body = CohortAnswer), (status = 201, body = CohortAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 412, body = Problem)))]
pub async fn put_cohort(
    State(app): State<Arc<App>>,
    admin: Admin<MayExperiment>,
    Path(key): Path<String>,
    JsonBody(rule): JsonBody<serde_json::Value>,
) -> Result<(StatusCode, Json<CohortAnswer>), Problem> {
    check_key(&key)?;
    let rule: Rule = serde_json::from_value(rule).map_err(|_| {
        Problem::invalid_field(
            "rule",
            "must be one of all, ids, attribute (with in, lt, gte), and, or, not; see docs/experiments.md",
        )
    })?;
    let new = app
        .deploy
        .put_cohort(&key, rule.clone(), admin.author())
        .await?;
    Ok((created(new), Json(CohortAnswer { key, rule })))
}

/// Returns an experiment and its state.
#[utoipa::path(get, path = "/admin/v1/experiments/{key}", tag = "admin", security(("admin" = [])), params(("key" = String, Path)),
    responses((status = 200, body = ExperimentAnswer), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn get_experiment(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    Path(key): Path<String>,
) -> Result<Json<ExperimentAnswer>, Problem> {
    let experiment = known(&app, &key)?;
    Ok(ExperimentAnswer::new(key, experiment, Scope::Everywhere))
}

fn known(app: &App, key: &str) -> Result<Experiment, Problem> {
    let experiment = app.deploy.serving().state.experiments.get(key).cloned();
    experiment.ok_or_else(|| Problem::not_found(format!("there is no experiment `{key}`")))
}

/// Creates or changes an experiment. While an experiment is running, only its coverage may grow.
#[utoipa::path(put, path = "/admin/v1/experiments/{key}", tag = "admin", security(("admin" = [])), params(IfMatch, ("key" = String, Path)),
    request_body = ExperimentSpec,
    responses((status = 200, body = ExperimentAnswer), (status = 201, body = ExperimentAnswer), (status = 400, body = Problem),
        (status = 403, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem)))]
pub async fn put_experiment(
    State(app): State<Arc<App>>,
    admin: Admin<MayExperiment>,
    Path(key): Path<String>,
    JsonBody(spec): JsonBody<ExperimentSpec>,
) -> Result<(StatusCode, Json<ExperimentAnswer>), Problem> {
    check_key(&key)?;
    let (experiment, new) = app
        .deploy
        .put_experiment(&key, spec, admin.author())
        .await?;
    Ok((
        created(new),
        ExperimentAnswer::new(key, experiment, Scope::Everywhere),
    ))
}

async fn become_state(
    app: &App,
    key: String,
    state: ExperimentState,
    author: Author<'_>,
) -> Result<Json<ExperimentAnswer>, Problem> {
    let (experiment, scope) = app.deploy.set_experiment_state(&key, state, author).await?;
    Ok(ExperimentAnswer::new(key, experiment, scope))
}

/// Starts assigning viewers to the variations.
#[utoipa::path(post, path = "/admin/v1/experiments/{key}/start", tag = "admin", security(("admin" = [])), params(IfMatch, ("key" = String, Path)),
    responses((status = 200, body = ExperimentAnswer), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem)))]
pub async fn start(
    State(app): State<Arc<App>>,
    admin: Admin<MayExperiment>,
    Path(key): Path<String>,
) -> Result<Json<ExperimentAnswer>, Problem> {
    become_state(&app, key, ExperimentState::Running, admin.author()).await
}

/// Pauses the assignment of viewers. The experiment can be started again.
#[utoipa::path(post, path = "/admin/v1/experiments/{key}/pause", tag = "admin", security(("admin" = [])), params(IfMatch, ("key" = String, Path)),
    responses((status = 200, body = ExperimentAnswer), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem)))]
pub async fn pause(
    State(app): State<Arc<App>>,
    admin: Admin<MayExperiment>,
    Path(key): Path<String>,
) -> Result<Json<ExperimentAnswer>, Problem> {
    become_state(&app, key, ExperimentState::Paused, admin.author()).await
}

/// Stops the assignment of viewers permanently.
#[utoipa::path(post, path = "/admin/v1/experiments/{key}/stop", tag = "admin", security(("admin" = [])), params(IfMatch, ("key" = String, Path)),
    responses((status = 200, body = ExperimentAnswer), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem)))]
pub async fn stop(
    State(app): State<Arc<App>>,
    admin: Admin<MayExperiment>,
    Path(key): Path<String>,
) -> Result<Json<ExperimentAnswer>, Problem> {
    become_state(&app, key, ExperimentState::Stopped, admin.author()).await
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ExperimentResults {
    pub key: String,
    pub state: ExperimentState,
    pub variations: Vec<VariationCount>,
}

/// Returns the number of served rankings and of distinct viewers per variation.
#[utoipa::path(get, path = "/admin/v1/experiments/{key}/results", tag = "admin", security(("admin" = [])), params(("key" = String, Path)),
    responses((status = 200, body = ExperimentResults), (status = 403, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub async fn results(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    Path(key): Path<String>,
) -> Result<Json<ExperimentResults>, Problem> {
    let experiment = known(&app, &key)?;
    let counted = app.stores.exposures.variation_counts(&key).await?;
    // A variation that no viewer has been served yet is listed with zero counts.
    let variations = experiment.spec.variations.iter().map(|variation| {
        let found = counted
            .iter()
            .find(|count| count.variation == variation.key)
            .cloned();
        found.unwrap_or_else(|| VariationCount {
            variation: variation.key.clone(),
            exposures: 0,
            viewers: 0,
        })
    });
    let variations = variations.collect();
    Ok(Json(ExperimentResults {
        key,
        state: experiment.state,
        variations,
    }))
}
