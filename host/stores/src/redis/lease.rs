//! Leases on periodic work: the host whose name is in the key holds the lease until the key
//! expires.
//!
//! A lease saves work; it is not a lock. If a host stalls for longer than its lease, another host
//! may start the same job, so every job must tolerate being run twice.

use super::{Redis, keys};
use crate::ports::{Lease, StoreResult};
use async_trait::async_trait;
use redis::Script;
use std::sync::LazyLock;
use std::time::Duration;
use uuid::Uuid;

static HOLD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("hold_lease.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("release_lease.lua")));

#[derive(Debug, Clone)]
pub struct RedisLease {
    redis: Redis,
    /// Identifies this process, not this machine, because a restarted process does not know which
    /// work was in progress.
    holder: String,
}

impl RedisLease {
    pub fn new(redis: Redis) -> Self {
        Self {
            redis,
            holder: Uuid::new_v4().to_string(),
        }
    }
}

#[async_trait]
impl Lease for RedisLease {
    async fn hold(&self, job: &str, ttl: Duration) -> StoreResult<bool> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut script = HOLD.key(keys::lease(job));
        script.arg(&self.holder).arg(ttl_ms);
        self.redis.call("hold_lease", script).await
    }

    async fn release(&self, job: &str) -> StoreResult<()> {
        let mut script = RELEASE.key(keys::lease(job));
        script.arg(&self.holder);
        self.redis.call("release_lease", script).await
    }
}
