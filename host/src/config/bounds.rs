//! Bounds of every number in the configuration. A value outside of them cannot work: a time limit
//! of 0 fails every call, and a limit without an end is none. The whole configuration is refused
//! then, at the start and at a reload.

use super::Config;
use nova_model::budget::{MIN_VIEWERS_MAX, WINDOW_MAX_S};
use serde_json::Value;

/// Values that a key accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    pub key: &'static str,
    pub unit: &'static str,
    pub min: f64,
    pub max: f64,
    /// Set if 0 is accepted besides the range, because it switches something off.
    pub zero: bool,
}

const fn within(key: &'static str, min: u64, max: u64, unit: &'static str) -> Bounds {
    Bounds {
        key,
        unit,
        min: min as f64,
        max: max as f64,
        zero: false,
    }
}

const fn zero_or(bounds: Bounds) -> Bounds {
    Bounds {
        zero: true,
        ..bounds
    }
}

const DAY_S: u64 = 86_400;
const HOUR_MS: u64 = 3_600_000;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// Bounds by key. A test fails if a numeric key is missing here.
pub const BOUNDS: &[Bounds] = &[
    zero_or(within("worker_concurrency", 1, 1_024, "threads")),
    zero_or(within("spool_bytes_max", 1, TIB, "bytes")),
    within("cache_mb", 1, MIB, "MiB"),
    within("stores.postgres_connections_max", 1, 1_000, "connections"),
    within("stores.circuit_open_ms", 100, HOUR_MS, "ms"),
    within("server.connections_max", 1, 1_000_000, "connections"),
    within("server.header_timeout_ms", 100, 600_000, "ms"),
    within("server.idle_timeout_ms", 100, HOUR_MS, "ms"),
    zero_or(within("server.drain_ms", 1, HOUR_MS, "ms")),
    within("server.body_timeout_ms", 100, 600_000, "ms"),
    within("server.shutdown_timeout_ms", 100, HOUR_MS, "ms"),
    within("policy.deadline_ms_max", 1, 1_000, "ms"),
    within("policy.cpu_percent", 1, 100, "%"),
    zero_or(within("policy.memory_mb", 64, MIB, "MiB")),
    within("policy.versions_max", 1, 1_000_000, "versions"),
    within("policy.dev_versions_max", 1, 1_000_000, "versions"),
    within("policy.modules_bytes_max", 64 * MIB, TIB, "bytes"),
    within("policy.admission_memory_mb", 256, MIB, "MiB"),
    within("policy.admission_cpu_s", 1, 3_600, "s"),
    within("policy.admission_wall_s", 1, 3_600, "s"),
    zero_or(within("ttl.candidates_s", 1, DAY_S, "s")),
    zero_or(within("ttl.snapshot_s", 1, DAY_S, "s")),
    zero_or(within("ttl.trending_s", 1, DAY_S, "s")),
    zero_or(within("ttl.suggestions_s", 1, DAY_S, "s")),
    within(
        "limits.viewer_requests_per_minute",
        1,
        1_000_000,
        "requests",
    ),
    within(
        "limits.viewer_event_batches_per_minute",
        1,
        1_000_000,
        "batches",
    ),
    within(
        "limits.address_requests_per_minute",
        1,
        1_000_000,
        "requests",
    ),
    within("limits.body_bytes_max", 1_024, 64 * MIB, "bytes"),
    within("limits.upload_bytes_max", MIB, 1_024 * MIB, "bytes"),
    within("feed.source_timeout_ms", 10, 60_000, "ms"),
    within("feed.timeline_timeout_ms", 10, 60_000, "ms"),
    within("feed.policy_budget_ms", 10, 60_000, "ms"),
    within("failure_budget.min_failures", 1, 1_000_000, "failures"),
    within(
        "failure_budget.min_viewers",
        1,
        MIN_VIEWERS_MAX as u64,
        "viewers",
    ),
    Bounds {
        key: "failure_budget.ratio",
        unit: "of the calls",
        min: 0.001,
        max: 1.0,
        zero: false,
    },
    within("failure_budget.window_s", 1, WINDOW_MAX_S, "s"),
    zero_or(within("failure_budget.p99_factor", 1, 1_000, "times")),
    within("failure_budget.p99_min_calls", 1, 1_000_000, "calls"),
    Bounds {
        key: "records.sample_ratio",
        unit: "of the rankings",
        min: 0.0,
        max: 1.0,
        zero: true,
    },
    zero_or(within("records.bytes_max", 1, TIB, "bytes")),
    within("records.age_max_h", 1, 87_600, "h"),
    within("shadow.cpu_percent", 0, 100, "%"),
];

impl Bounds {
    pub fn allow(&self, value: f64) -> bool {
        (self.min..=self.max).contains(&value) || self.zero && value == 0.0
    }
}

impl std::fmt::Display for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { unit, min, max, .. } = self;
        write!(f, "{min} … {max} {unit}")?;
        if self.zero && *min > 0.0 {
            f.write_str(", or 0")?;
        }
        Ok(())
    }
}

/// Returns the bounds of a key, if it is a number.
pub fn of(key: &str) -> Option<&'static Bounds> {
    BOUNDS.iter().find(|bounds| bounds.key == key)
}

/// Checks every number of the configuration.
///
/// # Errors
/// Fails with the key, the value and the accepted values of the first number that is outside of
/// its bounds.
pub fn check(config: &Config) -> Result<(), String> {
    let values = serde_json::to_value(config).map_err(|error| error.to_string())?;
    let outside = BOUNDS.iter().find_map(|bounds| {
        let value = values.pointer(&format!("/{}", bounds.key.replace('.', "/")));
        // JSON has no form of a number that is not finite.
        let value = value.and_then(Value::as_f64);
        let refused = !value.is_some_and(|value| bounds.allow(value));
        refused.then_some((bounds, value))
    });
    match outside {
        None => Ok(()),
        Some((bounds, Some(value))) => Err(format!(
            "{}: {value} is not within {bounds}; choose a value within",
            bounds.key
        )),
        Some((bounds, None)) => Err(format!(
            "{}: is not a number; choose one within {bounds}",
            bounds.key
        )),
    }
}
