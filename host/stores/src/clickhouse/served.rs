//! The record of served rankings, and the counts over it.

use super::{ClickHouseStore, failure, to_ticks};
use crate::ports::{ExposureStore, StoreResult};
use async_trait::async_trait;
use clickhouse::Row;
use nova_model::daily::DailyCounts;
use nova_model::exposure::{Exposure, VariationCount};
use nova_model::time::UnixMs;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const VARIATIONS: &str = "
SELECT variation, count() AS exposures, uniqExact(user_id) AS viewers
FROM variation_exposures FINAL
WHERE experiment = {experiment:String}
GROUP BY variation
ORDER BY variation";

/// A ranking that was recorded twice is usually replaced by itself in a merge. If it is not yet,
/// `uniqExact` counts it once.
const ACTIVE_VIEWERS: &str = "
SELECT user_id
FROM served
WHERE served_at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC')
GROUP BY user_id
ORDER BY uniqExact(ranking_id) DESC, user_id
LIMIT {limit:UInt32}";

#[derive(Debug, Row, Serialize)]
struct ServedRow {
    #[serde(with = "clickhouse::serde::uuid")]
    ranking_id: Uuid,
    request_id: String,
    user_id: u64,
    served_at: i64,
    served_by: String,
    policy: String,
    effective_digest: String,
    experiment: String,
    variation: String,
    posts: Vec<u64>,
    reasons: Vec<String>,
    degraded: Vec<String>,
}

#[derive(Debug, Row, Deserialize)]
struct VariationRow {
    variation: String,
    exposures: u64,
    viewers: u64,
}

impl From<&Exposure> for ServedRow {
    fn from(exposure: &Exposure) -> Self {
        let (posts, reasons) = exposure
            .posts
            .iter()
            .map(|(post_id, reason)| (*post_id, reason.to_string()))
            .unzip();
        Self {
            ranking_id: exposure.ranking_id,
            request_id: exposure.request_id.clone(),
            user_id: exposure.user_id,
            served_at: to_ticks(exposure.served_at_ms),
            served_by: exposure.served_by.clone(),
            policy: exposure.policy.clone(),
            effective_digest: exposure.effective_digest.clone(),
            experiment: exposure.experiment.clone().unwrap_or_default(),
            variation: exposure.variation.clone().unwrap_or_default(),
            posts,
            reasons,
            degraded: exposure.degraded.clone(),
        }
    }
}

#[async_trait]
impl ExposureStore for ClickHouseStore {
    async fn record(&self, exposures: &[Exposure]) -> StoreResult<()> {
        let rows: Vec<ServedRow> = exposures.iter().map(ServedRow::from).collect();
        let insert = self.insert("served", &rows, None);
        self.work_guard.run("record_exposures", insert).await
    }

    async fn variation_counts(&self, experiment: &str) -> StoreResult<Vec<VariationCount>> {
        let query = (self.worker.query(VARIATIONS)).param("experiment", experiment);
        let count = async {
            let rows = query.fetch_all::<VariationRow>().await.map_err(failure)?;
            let counts = rows.into_iter().map(|row| VariationCount {
                variation: row.variation,
                exposures: row.exposures,
                viewers: row.viewers,
            });
            Ok(counts.collect())
        };
        self.work_guard.run("variation_counts", count).await
    }

    async fn active_viewers(&self, since_ms: UnixMs, limit: u32) -> StoreResult<Vec<u64>> {
        let query = (self.worker.query(ACTIVE_VIEWERS))
            .param("since", to_ticks(since_ms))
            .param("limit", limit);
        let viewers = async { query.fetch_all::<u64>().await.map_err(failure) };
        self.work_guard.run("active_viewers", viewers).await
    }

    async fn daily_metrics(&self, day_start_ms: UnixMs) -> StoreResult<DailyCounts> {
        let counts = self.count_day(day_start_ms);
        self.work_guard.run("daily_metrics", counts).await
    }
}
