//! Port: the record of served rankings, and the counts over it.

use super::StoreResult;
use async_trait::async_trait;
use nova_model::daily::DailyCounts;
use nova_model::exposure::{Exposure, VariationCount};
use nova_model::time::UnixMs;

#[async_trait]
pub trait ExposureStore: Send + Sync + 'static {
    /// Records exposures. Writing the same `ranking_id` again changes nothing.
    async fn record(&self, exposures: &[Exposure]) -> StoreResult<()>;

    /// Exposures and distinct viewers of each variation of one experiment.
    async fn variation_counts(&self, experiment: &str) -> StoreResult<Vec<VariationCount>>;

    /// The viewers with the most rankings served since `since_ms`, most first, then lower id.
    async fn active_viewers(&self, since_ms: UnixMs, limit: u32) -> StoreResult<Vec<u64>>;

    /// Metrics of one UTC day. See docs/semantics.md, "Daily metrics".
    async fn daily_metrics(&self, day_start_ms: UnixMs) -> StoreResult<DailyCounts>;
}
