//! Connection pool usage: samples of used connections, and recommendations if the pool is too
//! small or far too large.

use serde::Serialize;
use std::collections::VecDeque;

/// Number of samples kept: five minutes, with one sample every five seconds.
const SAMPLES_MAX: usize = 60;
/// Smallest number of samples for a recommendation.
const SAMPLES_MIN: usize = 12;

/// Connections of one pool at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSample {
    pub in_use: u32,
    pub idle: u32,
    pub max: u32,
}

#[derive(Debug, Default)]
pub struct PoolWindow(VecDeque<PoolSample>);

/// Usage of a pool over the last minutes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct PoolReport {
    pub store: &'static str,
    pub max: u32,
    /// 95th percentile over the last five minutes.
    pub in_use_p95: u32,
    /// Recommended change. Null if the size fits.
    pub recommendation: Option<String>,
}

impl PoolWindow {
    pub fn push(&mut self, sample: PoolSample) {
        if self.0.len() == SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// Returns the report of the pool. `key` is the configuration key of the pool's size.
    pub fn report(&self, store: &'static str, key: &str) -> Option<PoolReport> {
        let max = self.0.back()?.max;
        let mut in_use: Vec<u32> = self.0.iter().map(|sample| sample.in_use).collect();
        in_use.sort_unstable();
        let in_use_p95 = in_use[(in_use.len() - 1) * 95 / 100];
        let recommendation = (self.0.len() >= SAMPLES_MIN)
            .then(|| recommendation(in_use_p95, max, key))
            .flatten();
        Some(PoolReport {
            store,
            max,
            in_use_p95,
            recommendation,
        })
    }
}

/// Returns a recommendation if the size does not fit. If every connection is in use, callers
/// queue. A pool that never needs a quarter of its connections wastes server resources, because
/// each connection costs the server a process.
fn recommendation(in_use_p95: u32, max: u32, key: &str) -> Option<String> {
    if in_use_p95 >= max {
        let more = max.saturating_mul(2);
        return Some(format!(
            "all {max} connections were in use for more than a twentieth of the last minutes, so queries waited: set {key} to {more}, if the server's max_connections allows it for every host"
        ));
    }
    let fewer = (in_use_p95 * 2).max(4);
    (max > 16 && in_use_p95 * 4 < max).then(|| {
        format!("{in_use_p95} of {max} connections were enough: {key} = {fewer} is sufficient")
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn report(in_use: u32, max: u32, samples: usize) -> PoolReport {
        let mut window = PoolWindow::default();
        for _ in 0..samples {
            let idle = max - in_use;
            window.push(PoolSample { in_use, idle, max });
        }
        window
            .report("postgres", "stores.postgres_connections_max")
            .unwrap()
    }

    #[test]
    fn a_full_pool_should_grow_and_a_nearly_unused_one_should_shrink() {
        let full = report(16, 16, 60).recommendation.unwrap();
        assert!(
            full.contains("stores.postgres_connections_max to 32"),
            "{full}"
        );
        let idle = report(2, 64, 60).recommendation.unwrap();
        assert!(idle.contains("= 4"), "{idle}");
        assert_eq!(report(8, 16, 60).recommendation, None);
    }

    #[test]
    fn too_few_samples_give_no_recommendation_and_old_ones_are_forgotten() {
        assert_eq!(report(16, 16, SAMPLES_MIN - 1).recommendation, None);
        let mut window = PoolWindow::default();
        for in_use in std::iter::repeat_n(16, 100).chain(std::iter::repeat_n(1, SAMPLES_MAX)) {
            window.push(PoolSample {
                in_use,
                idle: 16 - in_use,
                max: 16,
            });
        }
        assert_eq!(window.report("postgres", "k").unwrap().in_use_p95, 1);
    }
}
