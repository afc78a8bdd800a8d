//! Where callers wait for their turn before the deadline of a call begins.
//!
//! On a host that has more to do than its cores can, an answer of Redis waits long for somebody to read it. A deadline that
//! began for everybody at once would measure that, and take a busy host for a Redis that is gone. In a fault of Redis itself
//! nobody waits longer than a call may take: when calls fail and none succeeds, all who were waiting meanwhile are sent away.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Enough to keep Redis busy, few enough to be read in time.
const CALLS_AT_ONCE: usize = 512;
/// A look-up that waits longer than this is worth less than a miss.
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
    /// `None`: the line is too long, or calls only failed since the caller began to wait.
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

    /// To be called with the turn still held: whoever gets it next must know.
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
    async fn who_waits_gets_a_turn_unless_calls_only_failed_meanwhile() {
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
        // Whoever comes now knows nothing of that, and the turn is free again.
        assert!(line.turn().await.is_some());
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let line = Line::default();
        let _held = full(&line).await;
        assert!(line.turn().await.is_none());
    }
}
