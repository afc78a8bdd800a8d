//! What operators want to know of the servers below: how hard their connection pools are used, and what stands in
//! the shared cache. The queries themselves are timed by name where they are made.

use super::pools::{PoolReport, PoolSample, PoolWindow};
use crate::app::App;
use crate::metrics::METRICS;
use crate::stores::Lease;
use crate::stores::redis::Redis;
use crate::stores::redis::scan::{ScanReport, scan_report};
use arc_swap::ArcSwap;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

const POOL_INTERVAL: Duration = Duration::from_secs(5);
const SCAN_INTERVAL: Duration = Duration::from_secs(600);
/// Keys that one scan looks at.
const SCAN_KEYS_MAX: u64 = 200_000;
/// Larger values than this are reported.
const VALUE_BYTES_MAX: u64 = 1 << 20;

/// The last reports, for `/debug/system/state`.
#[derive(Debug, Default)]
pub struct Profile {
    pools: ArcSwap<Vec<PoolReport>>,
    cache: ArcSwap<Option<ScanReport>>,
}

/// Connection pools and the shared cache, where there are any.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ProfileReport {
    pub pools: Vec<PoolReport>,
    /// Keys of the shared cache by kind, from the last scan of whichever host made it.
    #[schema(value_type = Option<Object>)]
    pub cache: Option<ScanReport>,
}

impl Profile {
    pub fn report(&self) -> ProfileReport {
        ProfileReport {
            pools: Vec::clone(&self.pools.load()),
            cache: Option::clone(&self.cache.load()),
        }
    }
}

/// Watches one pool until the host ends. A recommendation is logged when it is first made.
pub async fn watch_pool(
    app: Arc<App>,
    store: &'static str,
    key: &'static str,
    sample: impl Fn() -> PoolSample + Send,
) {
    let mut window = PoolWindow::default();
    let mut advised = None;
    loop {
        let now = sample();
        for (state, connections) in [("in_use", now.in_use), ("idle", now.idle)] {
            METRICS
                .pool_connections
                .with_label_values(&[store, state])
                .set(connections.into());
        }
        window.push(now);
        if let Some(report) = window.report(store, key) {
            if report.recommendation != advised {
                if let Some(recommendation) = &report.recommendation {
                    tracing::warn!(store, recommendation, "pool pressure");
                }
                advised.clone_from(&report.recommendation);
            }
            app.profile.pools.store(Arc::new(vec![report]));
        }
        tokio::time::sleep(POOL_INTERVAL).await;
    }
}

/// Looks through the shared cache now and then; one host of many does.
pub async fn watch_cache(app: Arc<App>, redis: Redis, lease: Arc<dyn Lease>) {
    loop {
        tokio::time::sleep(SCAN_INTERVAL).await;
        match lease.hold("cache_scan", SCAN_INTERVAL * 3 / 2).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                tracing::debug!(%error, "the cache is not scanned");
                continue;
            }
        }
        match scan_report(&redis, SCAN_KEYS_MAX).await {
            Ok(report) => {
                tell(&report);
                app.profile.cache.store(Arc::new(Some(report)));
            }
            Err(error) => tracing::warn!(%error, "the cache could not be scanned"),
        }
    }
}

/// Keys that stay for ever and values that are too large are somebody's mistake.
fn tell(report: &ScanReport) {
    for (prefix, kind) in &report.prefixes {
        let mean_bytes = kind.bytes_estimate / kind.keys.max(1);
        if kind.without_ttl > 0 {
            tracing::warn!(
                prefix,
                keys = kind.without_ttl,
                "keys of the cache that never expire"
            );
        }
        if mean_bytes > VALUE_BYTES_MAX {
            tracing::warn!(prefix, mean_bytes, "large values in the cache");
        }
    }
}
