//! Port: which of many hosts does the periodic work.

use super::StoreResult;
use async_trait::async_trait;
use std::time::Duration;

/// Decides which of several hosts does the periodic work (Redis in the real stack; a single
/// host always does it).
#[async_trait]
pub trait Lease: Send + Sync + 'static {
    /// Takes the lease on `job` for `ttl`, or renews it. Returns `false` while another host holds
    /// it.
    async fn hold(&self, job: &str, ttl: Duration) -> StoreResult<bool>;

    /// Gives the lease up before it expires, so that another host can take it. A lease of
    /// another host is left alone.
    async fn release(&self, job: &str) -> StoreResult<()>;
}
