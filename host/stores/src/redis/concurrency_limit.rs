//! The concurrency limit on calls to Redis. Callers wait for a permit before the timeout of a
//! call begins.
//!
//! If a host has more work than its cores can do, an answer from Redis waits a long time until
//! the host reads it. If all timeouts began at once, they would measure that delay and mistake
//! a busy host for a Redis that is down. During a fault of Redis itself, no caller waits
//! longer than a call may take: if calls fail and none succeeds, all callers that waited
//! during that time are shed.

#![expect(
    clippy::disallowed_methods,
    reason = "waits for a permit, not for a store"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Number of permits: enough to keep Redis busy, and few enough that answers are read in time.
const CALLS_AT_ONCE: usize = 512;
/// Longest wait for a permit. A look-up that waits longer is worth less than a cache miss.
const WAIT_MAX: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct ConcurrencyLimit {
    permits: Semaphore,
    successes: AtomicU64,
    failures: AtomicU64,
}

impl Default for ConcurrencyLimit {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(CALLS_AT_ONCE),
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }
}

impl ConcurrencyLimit {
    /// Waits for a permit. Returns `None` if the wait is too long, or if calls only failed since
    /// the caller began to wait.
    pub async fn acquire(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(permit) = self.permits.try_acquire() {
            return Some(permit);
        }
        let (successes, failures) = self.ended();
        let permit = tokio::time::timeout(WAIT_MAX, self.permits.acquire()).await;
        let permit = permit.ok()?.ok()?;
        let (succeeded, failed) = self.ended();
        let only_failures = succeeded == successes && failed != failures;
        (!only_failures).then_some(permit)
    }

    /// Records the outcome of a call. Must be called while the permit is still held, so that the
    /// next holder sees the outcome.
    pub fn ended_with(&self, success: bool) {
        let ended = if success {
            &self.successes
        } else {
            &self.failures
        };
        ended.fetch_add(1, Ordering::Release);
    }

    fn ended(&self) -> (u64, u64) {
        let successes = self.successes.load(Ordering::Acquire);
        (successes, self.failures.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;

    async fn full(limit: &ConcurrencyLimit) -> Vec<SemaphorePermit<'_>> {
        let permits = join_all((0..CALLS_AT_ONCE).map(|_| limit.acquire())).await;
        permits.into_iter().flatten().collect()
    }

    #[tokio::test]
    async fn a_waiting_caller_gets_a_permit_unless_calls_only_failed_meanwhile() {
        let limit = ConcurrencyLimit::default();
        let mut held = full(&limit).await;
        assert_eq!(held.len(), CALLS_AT_ONCE);
        let one_ends = async |outcomes: &[bool], permit: Option<SemaphorePermit<'_>>| {
            for success in outcomes {
                limit.ended_with(*success);
            }
            drop(permit);
        };
        let (permit, ()) = tokio::join!(limit.acquire(), one_ends(&[true, false], held.pop()));
        assert!(permit.is_some());
        let (shed, ()) = tokio::join!(limit.acquire(), one_ends(&[false], held.pop()));
        assert!(shed.is_none());
        // A caller that arrives now did not see those failures, and the permit is free again.
        assert!(limit.acquire().await.is_some());
    }

    #[tokio::test]
    async fn a_wait_for_a_permit_is_bounded() {
        let limit = ConcurrencyLimit::default();
        let _held = full(&limit).await;
        assert!(limit.acquire().await.is_none());
    }
}
