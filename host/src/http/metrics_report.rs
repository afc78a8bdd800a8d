//! `GET /api/v1/feed/metrics`: one UTC day in numbers.

use super::auth::{Admin, Read};
use super::extract::Query;
use crate::app::App;
use crate::clock::unix_ms;
use crate::error::Problem;
use crate::stores::{DAY_MS, DigestCounts, UnixMs};
use axum::Json;
use axum::extract::State;
use chrono::{NaiveDate, NaiveTime};
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::Semaphore;

static REPORTING: Semaphore = Semaphore::const_new(1);

/// Ratios are null where there was nothing to divide by.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct DailyMetrics {
    pub date: NaiveDate,
    #[serde(flatten)]
    pub all: Ratios,
    pub by_policy: Vec<PolicyRatios>,
}

#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct PolicyRatios {
    /// Effective digest.
    pub digest: String,
    #[serde(flatten)]
    pub ratios: Ratios,
}

#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Ratios {
    /// views / impressions.
    pub ctr: Option<f64>,
    /// ms.
    pub dwell_p50: Option<f64>,
    /// ms.
    pub dwell_p95: Option<f64>,
    /// The same over posts whose reason was not followees.
    pub recommendation_ctr: Option<f64>,
    /// 1 − repeated posts / posts served.
    pub dedup_rate: Option<f64>,
    /// Rankings served with nothing missing / all.
    pub system_health: Option<f64>,
}

impl From<&DigestCounts> for Ratios {
    fn from(counts: &DigestCounts) -> Self {
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        Self {
            ctr: ratio(counts.views, counts.impressions),
            dwell_p50: counts.dwell_p50_ms,
            dwell_p95: counts.dwell_p95_ms,
            recommendation_ctr: ratio(counts.recommended_views, counts.recommended_impressions),
            dedup_rate: ratio(counts.posts_repeated, counts.posts_served)
                .map(|repeated| 1.0 - repeated),
            system_health: ratio(counts.rankings_whole, counts.rankings),
        }
    }
}

/// The metrics of one UTC day; today by default.
#[utoipa::path(get, path = "/api/v1/feed/metrics", tag = "clients", security(("admin" = [])),
    params(("date" = Option<String>, Query, description = "YYYY-MM-DD")),
    responses((status = 200, body = DailyMetrics), (status = 400, body = Problem), (status = 401, body = Problem), (status = 503, body = Problem)))]
pub async fn daily(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    query: Query,
) -> Result<Json<DailyMetrics>, Problem> {
    let today = crate::clock::utc(unix_ms()).date_naive();
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
    let start = date.and_time(NaiveTime::MIN).and_utc().timestamp_millis();
    let start_ms: UnixMs = u64::try_from(start)
        .map_err(|_| Problem::invalid_field("date", "must not be before 1970"))?;
    // Events of a day may still arrive for 24 h after it, so the day before today counts as today here.
    let settled = start_ms + 2 * DAY_MS < unix_ms();
    let cache = if settled {
        &app.settled_days
    } else {
        &app.unsettled_days
    };
    if let Some(metrics) = cache.get(&start_ms).await {
        return Ok(Json(metrics));
    }
    // One report at a time: each reads a whole day, with connections that feeds need as well.
    let _turn = REPORTING
        .acquire()
        .await
        .map_err(|closed| Problem::internal(&closed))?;
    if let Some(metrics) = cache.get(&start_ms).await {
        return Ok(Json(metrics));
    }
    let counts = app.stores.exposures.daily_metrics(start_ms).await?;
    let metrics = DailyMetrics {
        date,
        all: Ratios::from(&counts.overall),
        by_policy: counts
            .by_digest
            .iter()
            .map(|(digest, counts)| PolicyRatios {
                digest: digest.clone(),
                ratios: Ratios::from(counts),
            })
            .collect(),
    };
    cache.insert(start_ms, metrics.clone()).await;
    Ok(Json(metrics))
}
