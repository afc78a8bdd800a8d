//! The format of values that hosts share through [`ValueCache`]: JSON after one byte of
//! format version. A value that has another format or does not decode is a cache miss, and so
//! is a cache that fails.

use crate::ports::ValueCache;
use nova_model::time::UnixMs;
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Must be raised when the fields of a shared type change.
const FORMAT: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    made_at_ms: UnixMs,
    value: T,
}

/// A value that another request computed, and its age.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared<T> {
    pub age: Duration,
    pub value: T,
}

/// Reads a shared value. `cache` names the kind of value in metrics.
pub async fn get<T: DeserializeOwned>(
    values: &dyn ValueCache,
    cache: &str,
    key: &str,
) -> Option<Shared<T>> {
    let started = Instant::now();
    let found = values.get(key).await;
    METRICS
        .cache_duration_seconds
        .with_label_values(&[cache])
        .observe(started.elapsed().as_secs_f64());
    let (outcome, shared) = match found {
        Ok(None) => ("miss", None),
        Err(error) => {
            tracing::debug!(%error, cache, "could not read a shared value; computing it again");
            ("error", None)
        }
        Ok(Some(bytes)) => match decode(&bytes) {
            Some(shared) => ("hit", Some(shared)),
            None => ("undecodable", None),
        },
    };
    METRICS
        .cache_operations_total
        .with_label_values(&[cache, outcome])
        .inc();
    shared
}

/// Shares a value. If that fails, the failure is logged and each host that needs the
/// value computes it again.
pub async fn put<T: Serialize>(values: &dyn ValueCache, key: &str, value: &T, ttl: Duration) {
    let stored = Stored {
        made_at_ms: unix_ms(),
        value,
    };
    let mut bytes = vec![FORMAT];
    if let Err(error) = serde_json::to_writer(&mut bytes, &stored) {
        tracing::error!(%error, key, "could not encode a shared value as JSON; other hosts must compute it themselves");
        return;
    }
    if let Err(error) = values.put(key, bytes, ttl).await {
        tracing::debug!(%error, key, "could not store a shared value; other hosts must compute it themselves");
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<Shared<T>> {
    let (&format, json) = bytes.split_first()?;
    if format != FORMAT {
        return None;
    }
    let stored: Stored<T> = serde_json::from_slice(json).ok()?;
    Some(Shared {
        // The clocks of two hosts may differ, so a value from the future has age zero.
        age: Duration::from_millis(unix_ms().saturating_sub(stored.made_at_ms)),
        value: stored.value,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::embedded::cache::ProcessCache;

    #[tokio::test]
    async fn a_shared_value_is_found_until_its_ttl_expires() {
        let values = ProcessCache::new(1 << 20);
        put(&values, "a", &vec![1, 2], Duration::from_secs(60)).await;
        let found: Shared<Vec<u64>> = get(&values, "test", "a").await.unwrap();
        assert_eq!(found.value, [1, 2]);
        put(&values, "b", &1, Duration::ZERO).await;
        assert_eq!(get::<u64>(&values, "test", "b").await, None);
    }

    #[tokio::test]
    async fn values_of_another_format_and_garbage_are_misses() {
        let values = ProcessCache::new(1 << 20);
        for bytes in [
            b"".to_vec(),
            b"\x02{\"made_at_ms\":1,\"value\":1}".to_vec(),
            b"\x01{\"made_at_ms\":1,".to_vec(),
            b"\x01{\"made_at_ms\":1,\"value\":\"x\"}".to_vec(),
        ] {
            values
                .put("k", bytes.clone(), Duration::from_secs(60))
                .await
                .unwrap();
            assert_eq!(get::<u64>(&values, "test", "k").await, None, "{bytes:?}");
        }
    }
}
