//! The concurrency limit on calls to Redis. Callers wait for a permit before the timeout of a
//! call begins.
//!
//! If a host has more work than its cores can do, an answer from Redis waits a long time until
//! the host reads it. If all timeouts began at once, they would measure that delay and mistake
//! a busy host for a Redis that is down. During a fault of Redis itself, no caller waits
//! longer than a call may take: if calls fail and none succeeds, all callers that waited
//! during that time are shed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Number of permits: enough to keep Redis busy, and few enough that answers are read in time.
const CALLS_AT_ONCE: usize = 512;
/// Longest wait for a permit. A look-up that waits longer is worth less than a cache miss.
const WAIT_MAX: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct Line {
    turns: Semaphore,
    successes: AtomicU64,
    failures: AtomicU64,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(CALLS_AT_ONCE),
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }
}

impl Line {
    /// Waits for a permit. Returns `None` if the wait is too long, or if calls only failed since
    /// the caller began to wait.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(turn) = self.turns.try_acquire() {
            return Some(turn);
        }
        let (successes, failures) = self.ended();
        let turn = tokio::time::timeout(WAIT_MAX, self.turns.acquire()).await;
        let turn = turn.ok()?.ok()?;
        let (succeeded, failed) = self.ended();
        let only_failures = succeeded == successes && failed != failures;
        (!only_failures).then_some(turn)
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

    async fn full(line: &Line) -> Vec<SemaphorePermit<'_>> {
        let turns = join_all((0..CALLS_AT_ONCE).map(|_| line.turn())).await;
        turns.into_iter().flatten().collect()
    }

    #[tokio::test]
    async fn a_waiting_caller_gets_a_permit_unless_calls_only_failed_meanwhile() {
        let line = Line::default();
        let mut held = full(&line).await;
        assert_eq!(held.len(), CALLS_AT_ONCE);
        let one_ends = async |outcomes: &[bool], turn: Option<SemaphorePermit<'_>>| {
            for success in outcomes {
                line.ended_with(*success);
            }
            drop(turn);
        };
        let (turn, ()) = tokio::join!(line.turn(), one_ends(&[true, false], held.pop()));
        assert!(turn.is_some());
        let (dismissed, ()) = tokio::join!(line.turn(), one_ends(&[false], held.pop()));
        assert!(dismissed.is_none());
        // A caller that arrives now did not see those failures, and the permit is free again.
        assert!(line.turn().await.is_some());
    }

    #[tokio::test]
    async fn a_wait_for_a_permit_is_bounded() {
        let line = Line::default();
        let _held = full(&line).await;
        assert!(line.turn().await.is_none());
    }
}
