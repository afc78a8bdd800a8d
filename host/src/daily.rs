//! Daily metrics: ratios over the rankings served on one UTC day and the viewers' reactions to
//! them.

use crate::store_set::StoreSet;
use chrono::{NaiveDate, NaiveTime};
use nova_model::daily::{DailyCounts, DigestCounts};
use nova_model::time::{DAY_MS, UnixMs};
use nova_stores::ports::StoreResult;
use nova_stores::shared;
use nova_support::clock::unix_ms;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::sync::Mutex;

/// Allows one report at a time. Each report reads a whole day and uses connections that feeds
/// need too.
static REPORTING: Mutex<()> = Mutex::const_new(());
const UNSETTLED_TTL: Duration = Duration::from_secs(60);
const SETTLED_TTL: Duration = Duration::from_secs(86_400);

/// Metrics of one UTC day. Ratios are null if their denominator is zero.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DailyMetrics {
    pub date: NaiveDate,
    #[serde(flatten)]
    pub all: Ratios,
    pub by_policy: Vec<PolicyRatios>,
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PolicyRatios {
    /// Effective digest of the policy.
    pub digest: String,
    #[serde(flatten)]
    pub ratios: Ratios,
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Ratios {
    /// views / impressions.
    pub ctr: Option<f64>,
    /// Median dwell time, in ms.
    pub dwell_p50: Option<f64>,
    /// 95th percentile of the dwell time, in ms.
    pub dwell_p95: Option<f64>,
    /// Click-through rate over posts whose reason was not followees.
    pub recommendation_ctr: Option<f64>,
    /// 1 − repeated posts / posts served.
    pub dedup_rate: Option<f64>,
    /// Rankings served with no part missing / all rankings.
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

impl DailyMetrics {
    fn from_counts(date: NaiveDate, counts: &DailyCounts) -> Self {
        let by_policy = counts
            .by_digest
            .iter()
            .map(|(digest, counts)| PolicyRatios {
                digest: digest.clone(),
                ratios: Ratios::from(counts),
            });
        Self {
            date,
            all: Ratios::from(&counts.overall),
            by_policy: by_policy.collect(),
        }
    }
}

/// Returns the first millisecond of a day, or `None` before 1970.
fn start_ms(date: NaiveDate) -> Option<UnixMs> {
    u64::try_from(date.and_time(NaiveTime::MIN).and_utc().timestamp_millis()).ok()
}

/// Returns the metrics of a day, cached for as long as they can hardly change. Returns `None`
/// before 1970.
///
/// # Errors
/// The store failed.
pub async fn metrics(stores: &StoreSet, date: NaiveDate) -> StoreResult<Option<DailyMetrics>> {
    let Some(start_ms) = start_ms(date) else {
        return Ok(None);
    };
    // Events of a day may still arrive for 24 h after it, so yesterday is treated like today
    // here.
    let settled = start_ms + 2 * DAY_MS < unix_ms();
    let ttl = if settled { SETTLED_TTL } else { UNSETTLED_TTL };
    let (values, key) = (stores.values.as_ref(), format!("metrics:daily:{date}"));
    if let Some(found) = shared::get(values, "daily_metrics", &key).await {
        return Ok(Some(found.value));
    }
    let _turn = REPORTING.lock().await;
    if let Some(found) = shared::get(values, "daily_metrics", &key).await {
        return Ok(Some(found.value));
    }
    let counts = stores.exposures.daily_metrics(start_ms).await?;
    let metrics = DailyMetrics::from_counts(date, &counts);
    shared::put(values, &key, &metrics, ttl).await;
    Ok(Some(metrics))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;
