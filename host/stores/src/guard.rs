//! The wrapper around every call to a store that is a server: its circuit breaker, timeout,
//! metrics and the log of slow queries.
//!
//! Outcomes are recorded in `Drop`, so that a call whose caller gave up is in the histogram too.
//! A caller that has its own deadline calls [`within`]. The breaker can then tell an answer that
//! came too late, which is a failure, from a viewer who hung up.

#![expect(
    clippy::disallowed_methods,
    reason = "the one place with timeouts around stores"
)]

use super::breaker::{Breaker, Circuit};
use crate::ports::{StoreError, StoreResult};
use nova_support::metrics::METRICS;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::Instant as Deadline;
use tokio::time::error::Elapsed;

/// A timeout shorter than this says nothing about the store's health, so the breaker ignores it.
const EVIDENCE_MIN: Duration = Duration::from_millis(20);

tokio::task_local! {
    /// Time at which the caller of a call gives up.
    static CALLER_DEADLINE: Deadline;
}

/// Runs calls to a store under the caller's own deadline. Calls that are in progress when the
/// deadline passes count as failed.
///
/// # Errors
/// Fails if the deadline passes first.
pub async fn within<T>(timeout: Duration, calls: impl Future<Output = T>) -> Result<T, Elapsed> {
    let deadline = Deadline::now() + timeout;
    tokio::time::timeout_at(deadline, CALLER_DEADLINE.scope(deadline, calls)).await
}

/// Returns the deadline that [`within`] set, so that it can be passed on if another task makes
/// the call.
pub fn caller_deadline() -> Option<Deadline> {
    CALLER_DEADLINE.try_get().ok()
}

/// Does the same as [`within`] for a deadline that was set elsewhere. Returns `None` if the
/// deadline passes first.
pub async fn within_until<T>(
    deadline: Option<Deadline>,
    calls: impl Future<Output = T>,
) -> Option<T> {
    match deadline {
        None => Some(calls.await),
        Some(deadline) => {
            let calls = CALLER_DEADLINE.scope(deadline, calls);
            tokio::time::timeout_at(deadline, calls).await.ok()
        }
    }
}

/// Name of the ping query in metrics.
const PING: &str = "ping";

#[derive(Debug, Clone)]
pub struct Guard {
    store: &'static str,
    /// Name of the breaker in metrics.
    circuit: &'static str,
    timeout: Duration,
    breaker: Arc<Mutex<Breaker>>,
}

/// The failure of a call: the adapter's error, and `retryable`, which says if a retry may help.
#[derive(Debug)]
pub struct Failure {
    pub retryable: bool,
    pub source: anyhow::Error,
}

/// Counts as retryable unless the adapter knows better, because a broken connection is the common
/// case.
impl From<anyhow::Error> for Failure {
    fn from(source: anyhow::Error) -> Self {
        Self {
            retryable: true,
            source,
        }
    }
}

impl Failure {
    /// A failure that a retry cannot change: the store answered, and would answer the same again.
    pub fn permanent(error: impl Into<anyhow::Error>) -> Self {
        Self {
            retryable: false,
            source: error.into(),
        }
    }
}

impl Guard {
    /// `timeout` is the longest time that any call to this store may take.
    pub fn new(store: &'static str, timeout: Duration) -> Self {
        Self::with_breaker(store, timeout, Breaker::default())
    }

    pub fn with_breaker(store: &'static str, timeout: Duration, breaker: Breaker) -> Self {
        Self::for_some(store, store, timeout, breaker)
    }

    /// Guards calls that say nothing about the store's other calls; their breaker has its own name.
    pub fn for_some(
        store: &'static str,
        circuit: &'static str,
        timeout: Duration,
        breaker: Breaker,
    ) -> Self {
        let guard = Self {
            store,
            circuit,
            timeout,
            breaker: Arc::new(Mutex::new(breaker)),
        };
        guard.show();
        guard
    }

    /// Returns a guard with the same timeout and another breaker.
    pub fn with_new_breaker(&self, breaker: Breaker) -> Self {
        Self::for_some(self.store, self.circuit, self.timeout, breaker)
    }

    /// Returns a closed breaker with the same settings as this guard's breaker.
    pub fn breaker_like(&self) -> Breaker {
        self.breaker().renewed()
    }

    /// Returns a guard with the same breaker and another timeout, for work that is known to take
    /// longer.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    pub fn store(&self) -> &'static str {
        self.store
    }

    pub fn circuit(&self) -> Circuit {
        self.breaker().circuit()
    }

    /// Runs one call. A failure is counted; three in a row open the circuit for every call of
    /// this store.
    ///
    /// # Errors
    /// Fails if the call itself fails, if no answer comes in time, or if the circuit is open.
    pub async fn run<T, F>(&self, query: &'static str, work: F) -> StoreResult<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if !self.breaker().admit(Instant::now()) {
            METRICS
                .store_queries_total
                .with_label_values(&[self.store, query, "circuit_open"])
                .inc();
            return Err(self.error(query, anyhow::anyhow!("the circuit breaker is open")));
        }
        self.show();
        let mut call = Call {
            guard: self,
            query,
            started: Instant::now(),
            caller_deadline: caller_deadline(),
            outcome: None,
        };
        let result = tokio::time::timeout(self.timeout, work).await;
        call.outcome = Some(Outcome::from_result(&result));
        drop(call);
        self.answer(query, result)
    }

    /// Returns the error of a call that was not made because this host has too many in progress.
    /// It says nothing about the store's health.
    pub fn shed(&self, query: &'static str) -> StoreError {
        METRICS
            .store_queries_total
            .with_label_values(&[self.store, query, "turned_away"])
            .inc();
        self.error(query, anyhow::anyhow!("too many calls are in progress"))
    }

    /// Checks that the store answers, also while the circuit is open. The outcome does not change
    /// the circuit: a store that answers a ping in time may still be late with everything else.
    ///
    /// # Errors
    /// Fails if the call itself fails or if no answer comes in time.
    pub async fn ping<T, F>(&self, work: F) -> StoreResult<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let started = Instant::now();
        let result = tokio::time::timeout(self.timeout, work).await;
        let is_ok = Outcome::from_result(&result) == Outcome::Ok;
        METRICS.observe_store(self.store, PING, started.elapsed(), is_ok);
        self.answer(PING, result)
    }

    fn answer<T>(
        &self,
        query: &'static str,
        result: Result<Result<T, Failure>, Elapsed>,
    ) -> StoreResult<T> {
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(failure)) => Err(StoreError {
                retryable: failure.retryable,
                ..self.error(query, failure.source)
            }),
            Err(_) => {
                let timeout_ms = self.timeout.as_millis();
                Err(self.error(query, anyhow::anyhow!("no answer within {timeout_ms} ms")))
            }
        }
    }

    fn error(&self, query: &'static str, source: anyhow::Error) -> StoreError {
        StoreError {
            store: self.store,
            query,
            retryable: true,
            source,
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self) {
        METRICS
            .circuit_state
            .with_label_values(&[self.circuit])
            .set(self.circuit().gauge());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Refused,
    Failed,
}

impl Outcome {
    fn from_result<T>(result: &Result<Result<T, Failure>, Elapsed>) -> Self {
        match result {
            Ok(Ok(_)) => Self::Ok,
            // A permanent refusal is still an answer, so the store is up.
            Ok(Err(failure)) if !failure.retryable => Self::Refused,
            _ => Self::Failed,
        }
    }
}

struct Call<'a> {
    guard: &'a Guard,
    query: &'static str,
    started: Instant,
    caller_deadline: Option<Deadline>,
    outcome: Option<Outcome>,
}

impl Call<'_> {
    /// True if the caller's deadline ended the call and the store had at least [`EVIDENCE_MIN`]
    /// to answer. Otherwise the caller hung up or left the store too little time.
    fn came_too_late(&self) -> bool {
        self.caller_deadline
            .is_some_and(|end| end <= Deadline::now())
            && self.started.elapsed() >= EVIDENCE_MIN
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let (now, took) = (Instant::now(), self.started.elapsed());
        let outcome = match self.outcome {
            None if self.came_too_late() => Some(Outcome::Failed),
            outcome => outcome,
        };
        let circuit = {
            let mut breaker = self.guard.breaker();
            let before = breaker.circuit();
            match outcome {
                None => breaker.abandoned(now),
                Some(Outcome::Failed) => breaker.failed(self.started, now),
                Some(Outcome::Ok | Outcome::Refused) => breaker.succeeded(),
            }
            (before, breaker.circuit())
        };
        if let (before, after) = circuit
            && before != after
        {
            tracing::warn!(
                store = self.guard.circuit,
                circuit = after.as_str(),
                "the circuit breaker of a store changed its state"
            );
        }
        self.guard.show();
        if outcome.is_some() {
            METRICS.observe_store(
                self.guard.store,
                self.query,
                took,
                outcome == Some(Outcome::Ok),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fail(guard: &Guard) -> StoreResult<()> {
        guard
            .run("q", async { Err(Failure::from(anyhow::anyhow!("down"))) })
            .await
    }

    #[tokio::test]
    async fn three_failures_in_a_row_block_the_fourth_call() {
        let guard = Guard::new("test_failures", Duration::from_secs(1));
        for _ in 0..3 {
            assert!(fail(&guard).await.is_err());
        }
        let mut asked = false;
        let fourth = guard.run("q", async {
            asked = true;
            Ok(())
        });
        assert!(fourth.await.is_err());
        assert!(!asked);
        assert_eq!(guard.circuit(), Circuit::Open);
    }

    #[tokio::test]
    async fn a_permanent_refusal_does_not_open_the_circuit() {
        let guard = Guard::new("test_refusals", Duration::from_secs(1));
        for _ in 0..5 {
            let refused = guard.run("q", async {
                Err::<(), _>(Failure::permanent(anyhow::anyhow!("no such row")))
            });
            assert!(!refused.await.is_err_and(|error| error.retryable));
        }
        assert_eq!(guard.circuit(), Circuit::Closed);
    }

    #[tokio::test]
    async fn a_timeout_is_a_failure_but_a_caller_that_hangs_up_early_is_not() {
        let guard = Guard::new("test_silence", Duration::from_millis(40));
        for _ in 0..4 {
            let left = guard.run("q", std::future::pending::<Result<(), Failure>>());
            let hung_up = tokio::time::timeout(Duration::from_millis(25), left);
            let _ = within(Duration::from_secs(1), hung_up).await;
        }
        assert_eq!(guard.circuit(), Circuit::Closed);
        for _ in 0..3 {
            let silent = guard.run("q", std::future::pending::<Result<(), Failure>>());
            assert!(silent.await.is_err());
        }
        assert_eq!(guard.circuit(), Circuit::Open);
    }

    #[tokio::test]
    async fn a_timeout_at_the_callers_own_deadline_counts_as_a_failure() {
        let guard = Guard::new("test_patience", Duration::from_secs(60));
        let silence = || guard.run("q", std::future::pending::<Result<(), Failure>>());
        for _ in 0..2 {
            assert!(within(EVIDENCE_MIN * 2, silence()).await.is_err());
        }
        assert!(within(Duration::ZERO, silence()).await.is_err());
        assert_eq!(guard.circuit(), Circuit::Closed, "no time, no failure");
        assert!(within(EVIDENCE_MIN * 2, silence()).await.is_err());
        assert_eq!(guard.circuit(), Circuit::Open);
    }

    #[tokio::test]
    async fn a_ping_does_not_change_the_circuit_and_runs_while_it_is_open() {
        let guard = Guard::new("test_pings", Duration::from_secs(1));
        for _ in 0..4 {
            let down = async { Err::<(), _>(Failure::from(anyhow::anyhow!("down"))) };
            assert!(guard.ping(down).await.is_err());
        }
        assert_eq!(guard.circuit(), Circuit::Closed);
        for _ in 0..3 {
            assert!(fail(&guard).await.is_err());
        }
        assert!(guard.ping(async { Ok(()) }).await.is_ok());
        assert_eq!(guard.circuit(), Circuit::Open);
    }
}
