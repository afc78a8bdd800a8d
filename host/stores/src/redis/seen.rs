//! Seen posts in Redis: a Bloom filter for each viewer and each slice of three hours. All
//! slices that overlap the last 24 hours are queried together, so a post counts as seen for at
//! least 24 hours and at most three more.

use super::bloom::{FORMAT, FULL_DIVISOR, Filter, HASHES, Hash, LAYERS_BITS};
use super::{Redis, STORE_NAME, keys};
use crate::ports::{SeenAmong, SeenPosts, StoreResult};
use async_trait::async_trait;
use nova_model::time::{DAY_MS, HOUR_MS, UnixMs};
use nova_support::metrics::METRICS;
use prometheus::Histogram;
use redis::{Script, cmd};
use std::sync::LazyLock;

/// Length of a slice in ms. Shorter slices would mean more keys to read; longer ones would hide
/// a post from its viewer for longer than promised.
const SLICE_MS: u64 = 3 * HOUR_MS;
/// Lifetime of the version in ms. It outlives every filter that it covers.
const VERSION_LIFE_MS: u64 = DAY_MS + 2 * SLICE_MS;
/// Version of a viewer who has seen no posts recently; 0 is the version of a filter that could
/// not be read.
const UNSEEN: u64 = 1;
/// Maximum number of posts in one call of the script, because Redis serves no other client during
/// a call. More posts are split into several calls.
const POSTS_PER_CALL: usize = 100;

static MARK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("mark_seen.lua")));

#[derive(Debug, Clone)]
pub struct RedisSeen {
    redis: Redis,
    duration_seconds: Histogram,
}

impl RedisSeen {
    pub fn new(redis: Redis) -> Self {
        Self {
            redis,
            duration_seconds: METRICS.cache_duration_seconds.with_label_values(&["seen"]),
        }
    }

    /// Returns the version and the filters that cover the 24 hours before `now_ms`, all
    /// read at the same moment.
    async fn read(
        &self,
        query: &'static str,
        viewer: u64,
        now_ms: UnixMs,
    ) -> StoreResult<(u64, Vec<Vec<u8>>)> {
        let _timer = self.duration_seconds.start_timer();
        let oldest = now_ms.saturating_sub(DAY_MS) / SLICE_MS;
        let mut command = cmd("MGET");
        command.arg(keys::seen_version(viewer));
        for slice in oldest..=now_ms / SLICE_MS {
            command.arg(keys::seen(viewer, slice));
        }
        let mut values: Vec<Option<Vec<u8>>> = self.redis.call(query, command).await?;
        let slices = values.split_off(1.min(values.len()));
        let version = version_of(values.pop().flatten());
        Ok((version, slices.into_iter().flatten().collect()))
    }

    async fn mark_some(&self, viewer: u64, posts: &[u64], accepted_ms: UnixMs) -> StoreResult<()> {
        let slice = accepted_ms / SLICE_MS;
        let filter_life_ms = (slice + 1) * SLICE_MS + DAY_MS - accepted_ms;
        // A random number instead of a counter, so that no version is used twice, even after
        // Redis has lost the last one.
        let next_version = rand::random_range(UNSEEN + 1..=u64::MAX);
        let mut script = MARK.key(keys::seen(viewer, slice));
        script
            .key(keys::seen_version(viewer))
            .arg(FORMAT)
            .arg(filter_life_ms)
            .arg(next_version)
            .arg(VERSION_LIFE_MS)
            .arg(HASHES)
            .arg(FULL_DIVISOR)
            .arg(LAYERS_BITS.len());
        for bits in LAYERS_BITS {
            script.arg(bits);
        }
        for Hash { first, step } in posts.iter().map(|post| Hash::new(*post)) {
            script.arg(first).arg(step);
        }
        self.redis.call("mark_seen", script).await
    }
}

pub(super) fn version_of(stored: Option<Vec<u8>>) -> u64 {
    stored
        .and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok())
        .unwrap_or(UNSEEN)
}

#[async_trait]
impl SeenPosts for RedisSeen {
    fn name(&self) -> &'static str {
        STORE_NAME
    }

    async fn version(&self, viewer: u64) -> StoreResult<u64> {
        let _timer = self.duration_seconds.start_timer();
        let command = cmd("MGET").arg(keys::seen_version(viewer)).to_owned();
        let [version] = self.redis.call("seen_version", command).await?;
        Ok(version_of(version))
    }

    async fn among(&self, viewer: u64, posts: &[u64], now_ms: UnixMs) -> StoreResult<SeenAmong> {
        let (version, slices) = self.read("seen_among", viewer, now_ms).await?;
        let filters: Vec<Filter> = slices
            .iter()
            .filter_map(|bytes| Filter::read(bytes))
            .collect();
        let is_seen = |post: &u64| {
            let hash = Hash::new(*post);
            filters.iter().any(|filter| filter.contains(hash))
        };
        Ok(SeenAmong {
            version,
            seen: posts.iter().map(is_seen).collect(),
        })
    }

    async fn mark(&self, viewer: u64, posts: &[u64], accepted_ms: UnixMs) -> StoreResult<()> {
        let _timer = self.duration_seconds.start_timer();
        for posts in posts.chunks(POSTS_PER_CALL) {
            self.mark_some(viewer, posts, accepted_ms).await?;
        }
        Ok(())
    }

    async fn count(&self, viewer: u64, now_ms: UnixMs) -> StoreResult<u64> {
        let (_, slices) = self.read("seen_count", viewer, now_ms).await?;
        let filters = slices.iter().filter_map(|bytes| Filter::read(bytes));
        Ok(filters.map(Filter::estimate).sum::<f64>().round() as u64)
    }
}
