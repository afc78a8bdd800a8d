//! `GET /api/v1/feed/metrics`: the metrics of one day.

use super::auth::{Admin, Read};
use super::extract::Query;
use crate::app::App;
use crate::daily::{DailyMetrics, metrics};
use crate::http::problem::Problem;
use axum::Json;
use axum::extract::State;
use chrono::NaiveDate;
use nova_support::clock::unix_ms;
use std::sync::Arc;

/// Returns the metrics of one UTC day, by default today.
#[utoipa::path(get, path = "/api/v1/feed/metrics", tag = "clients", security(("admin" = [])),
    params(("date" = Option<String>, Query, description = "YYYY-MM-DD")),
    responses((status = 200, body = DailyMetrics), (status = 400, body = Problem), (status = 401, body = Problem), (status = 503, body = Problem)))]
pub async fn daily(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    query: Query,
) -> Result<Json<DailyMetrics>, Problem> {
    let today = nova_model::time::utc(unix_ms()).date_naive();
    let date = match query.get("date") {
        None => today,
        Some(text) => NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .ok()
            .filter(|date| *date <= today)
            .ok_or_else(|| {
                Problem::invalid_field(
                    "date",
                    "must be a day such as 2026-01-31, not in the future",
                )
            })?,
    };
    let metrics = metrics(&app.stores, date).await?;
    let metrics =
        metrics.ok_or_else(|| Problem::invalid_field("date", "must not be before 1970"))?;
    Ok(Json(metrics))
}
