//! Counters of the feed that are looked up once and counted on every request.

use nova_support::metrics::METRICS;
use prometheus::IntCounter;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The `cache_operations_total` counters of one cache. They are looked up once.
#[derive(Debug)]
pub struct CacheCounter {
    hits: IntCounter,
    misses: IntCounter,
}

impl CacheCounter {
    pub fn new(cache: &str) -> Self {
        let operations = &METRICS.cache_operations_total;
        Self {
            hits: operations.with_label_values(&[cache, "hit"]),
            misses: operations.with_label_values(&[cache, "miss"]),
        }
    }

    pub fn count(&self, hit: bool) {
        if hit {
            self.hits.inc()
        } else {
            self.misses.inc()
        }
    }
}

/// Share of feeds that fell back to the timeline. The counts start again after every 1,000
/// feeds.
#[derive(Debug, Default)]
pub struct FallbackRatio {
    feeds: AtomicUsize,
    fallbacks: AtomicUsize,
}

impl FallbackRatio {
    const WINDOW: usize = 1_000;

    pub fn count(&self, fallback: bool) {
        let fallbacks = self
            .fallbacks
            .fetch_add(usize::from(fallback), Ordering::Relaxed)
            + usize::from(fallback);
        let feeds = self.feeds.fetch_add(1, Ordering::Relaxed) + 1;
        METRICS.fallback_ratio.set(fallbacks as f64 / feeds as f64);
        if feeds >= Self::WINDOW {
            self.feeds.store(0, Ordering::Relaxed);
            self.fallbacks.store(0, Ordering::Relaxed);
        }
    }
}
