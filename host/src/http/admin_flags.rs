//! Routes of the feature flags, which can be switched while the host runs.

use super::auth::{Admin, IfMatch, Operate, Read};
use super::extract::{Json as JsonBody, Path};
use crate::app::App;
use crate::config::Flags;
use crate::http::problem::Problem;
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct FlagAnswer {
    pub name: String,
    pub enabled: bool,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlagBody {
    pub enabled: bool,
}

fn answer(app: &App, name: String) -> Result<Json<FlagAnswer>, Problem> {
    match app.flags().get(&name) {
        Some(enabled) => Ok(Json(FlagAnswer { name, enabled })),
        None => Err(Problem::not_found(format!(
            "there is no flag `{name}`; the flags are {}",
            Flags::NAMES.join(", ")
        ))),
    }
}

/// Returns the current value of a flag.
#[utoipa::path(get, path = "/admin/v1/flags/{name}", tag = "admin", security(("admin" = [])), params(("name" = String, Path)),
    responses((status = 200, body = FlagAnswer), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn get_flag(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    Path(name): Path<String>,
) -> Result<Json<FlagAnswer>, Problem> {
    answer(&app, name)
}

/// Switches a flag. The value survives restarts and takes precedence over the configuration.
#[utoipa::path(put, path = "/admin/v1/flags/{name}", tag = "admin", security(("admin" = [])), params(IfMatch, ("name" = String, Path)),
    request_body = FlagBody,
    responses((status = 200, body = FlagAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 412, body = Problem)))]
pub async fn put_flag(
    State(app): State<Arc<App>>,
    admin: Admin<Operate>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<FlagBody>,
) -> Result<Json<FlagAnswer>, Problem> {
    if app.flags().get(&name).is_none() {
        return answer(&app, name);
    }
    app.deploy
        .set_flag(&name, body.enabled, admin.author())
        .await?;
    answer(&app, name)
}
