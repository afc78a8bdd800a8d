//! A scan of the keys in Redis by kind: their number, their approximate size, and the number of
//! keys that never expire.
//!
//! It is meant for a job or for an operator's question, never for a request. The scan takes small
//! steps, visits a bounded number of keys and measures only a sample of them, because `MEMORY
//! USAGE` walks the whole value.

use super::{Redis, keys};
use crate::ports::StoreResult;
use redis::{cmd, pipe};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Number of keys in one step; Redis serves no other client during a step.
const STEP_KEYS: usize = 200;
/// Pause between steps, during which Redis serves other clients.
const PAUSE: Duration = Duration::from_millis(2);
/// Sampling interval: one key in this many is measured, and always the first key of each kind.
const SAMPLE: u64 = 16;
const STEP_TIMEOUT: Duration = Duration::from_secs(1);
/// Name of the breaker for the scan in metrics.
const CIRCUIT: &str = "redis_scan";
/// Label of keys that match none of Nova's prefixes.
const OTHER: &str = "other";

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ScanReport {
    /// True if the scan finished within its limit.
    pub complete: bool,
    pub keys: u64,
    /// Report for each key prefix, e.g. `snap:v1:`.
    pub prefixes: BTreeMap<&'static str, PrefixReport>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PrefixReport {
    pub keys: u64,
    /// Estimated size of all keys in bytes, from those that were measured.
    pub bytes_estimate: u64,
    /// Number of keys that never expire. There should be none.
    pub without_ttl: u64,
    #[serde(skip)]
    weighed: u64,
    #[serde(skip)]
    weighed_bytes: u64,
}

/// Scans at most about `keys_max` keys of the connection's database. Keys that are added or
/// removed during the scan may or may not be counted.
///
/// # Errors
/// Fails if Redis did not answer a step.
pub async fn scan_report(redis: &Redis, keys_max: u64) -> StoreResult<ScanReport> {
    let redis = redis.in_background(CIRCUIT, STEP_TIMEOUT);
    let mut report = ScanReport::default();
    let mut cursor = 0_u64;
    loop {
        let mut step = cmd("SCAN");
        step.arg(cursor).arg("COUNT").arg(STEP_KEYS);
        let (next, found): (u64, Vec<Vec<u8>>) = redis.call("scan", step).await?;
        look_at(&redis, &found, &mut report).await?;
        cursor = next;
        report.complete = cursor == 0;
        if report.complete || report.keys >= keys_max {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    for prefix in report.prefixes.values_mut() {
        let each = prefix.weighed_bytes as f64 / prefix.weighed.max(1) as f64;
        prefix.bytes_estimate = (each * prefix.keys as f64) as u64;
    }
    Ok(report)
}

async fn look_at(redis: &Redis, found: &[Vec<u8>], report: &mut ScanReport) -> StoreResult<()> {
    if found.is_empty() {
        return Ok(());
    }
    let mut pipeline = pipe();
    let mut weighed = Vec::new();
    for key in found {
        pipeline.cmd("PTTL").arg(key);
        let entry = report.prefixes.entry(prefix_of(key)).or_default();
        if entry.keys.is_multiple_of(SAMPLE) {
            pipeline
                .cmd("MEMORY")
                .arg("USAGE")
                .arg(key)
                .arg("SAMPLES")
                .arg(5);
        }
        weighed.push(entry.keys.is_multiple_of(SAMPLE));
        entry.keys += 1;
        report.keys += 1;
    }
    let answers: Vec<Option<i64>> = redis.call("scan_keys", pipeline).await?;
    let mut answers = answers.into_iter();
    for (key, weighed) in found.iter().zip(weighed) {
        let entry = report.prefixes.entry(prefix_of(key)).or_default();
        // −1 means no expiry; −2 means that the key is gone by now.
        if answers.next().flatten() == Some(-1) {
            entry.without_ttl += 1;
        }
        if weighed && let Some(Some(bytes)) = answers.next() {
            entry.weighed += 1;
            entry.weighed_bytes += bytes.max(0) as u64;
        }
    }
    Ok(())
}

fn prefix_of(key: &[u8]) -> &'static str {
    keys::PREFIXES
        .iter()
        .find(|prefix| key.starts_with(prefix.as_bytes()))
        .copied()
        .unwrap_or(OTHER)
}
