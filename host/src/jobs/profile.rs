//! Profile of the servers for operators: usage of their connection pools, and the contents of
//! the shared cache. Queries are timed by name where they are made.

use super::pools::{PoolReport, PoolSample, PoolWindow};
use arc_swap::ArcSwap;
use nova_stores::ports::Lease;
use nova_stores::redis::Redis;
use nova_stores::redis::scan::{ScanReport, scan_report};
use nova_support::metrics::METRICS;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

const POOL_INTERVAL: Duration = Duration::from_secs(5);
const SCAN_INTERVAL: Duration = Duration::from_secs(600);
/// Largest number of keys that one scan reads.
const SCAN_KEYS_MAX: u64 = 200_000;
/// Size in bytes above which values are reported.
const VALUE_BYTES_MAX: u64 = 1 << 20;

/// The latest reports, for `/debug/system/state`.
#[derive(Debug, Default)]
pub struct Profile {
    pools: ArcSwap<Vec<PoolReport>>,
    cache: ArcSwap<Option<ScanReport>>,
}

/// Reports about connection pools and the shared cache, if the host has any.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ProfileReport {
    pub pools: Vec<PoolReport>,
    /// Keys of the shared cache by kind, from the last scan that this host made.
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

/// Samples one pool until the host ends. A recommendation is logged when it changes.
pub async fn watch_pool(
    profile: Arc<Profile>,
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
                    tracing::warn!(
                        store,
                        recommendation,
                        "the size of a connection pool does not fit its use"
                    );
                }
                advised.clone_from(&report.recommendation);
            }
            profile.pools.store(Arc::new(vec![report]));
        }
        tokio::time::sleep(POOL_INTERVAL).await;
    }
}

/// Scans the shared cache periodically. Only one host does so at a time.
pub async fn watch_cache(profile: Arc<Profile>, redis: Redis, lease: Arc<dyn Lease>) {
    loop {
        tokio::time::sleep(SCAN_INTERVAL).await;
        match lease.hold("cache_scan", SCAN_INTERVAL * 3 / 2).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                tracing::debug!(%error, "could not get the lease of the cache scan; trying again at the next interval");
                continue;
            }
        }
        match scan_report(&redis, SCAN_KEYS_MAX).await {
            Ok(report) => {
                tell(&report);
                profile.cache.store(Arc::new(Some(report)));
            }
            Err(error) => {
                tracing::warn!(%error, "could not scan the shared cache; trying again at the next interval")
            }
        }
    }
}

/// Logs keys that never expire and values that are too large, because both are mistakes.
fn tell(report: &ScanReport) {
    for (prefix, kind) in &report.prefixes {
        let mean_bytes = kind.bytes_estimate / kind.keys.max(1);
        if kind.without_ttl > 0 {
            tracing::warn!(
                prefix,
                keys = kind.without_ttl,
                "the shared cache has keys that never expire; find their writer"
            );
        }
        if mean_bytes > VALUE_BYTES_MAX {
            tracing::warn!(
                prefix,
                mean_bytes,
                "the shared cache has very large values; find their writer"
            );
        }
    }
}
