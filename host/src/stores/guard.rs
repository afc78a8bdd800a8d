//! What stands around every call of a store that is a server: its circuit breaker, its deadline, its
//! metrics, and the log of slow queries.
//!
//! Outcomes are recorded in `Drop`, so that a call whose caller gave up is in the histogram too. A caller with a
//! deadline of its own calls [`within`], so that the breaker can tell an answer that came too late, which is a
//! failure, from a viewer who hung up.

use super::breaker::{Breaker, Circuit};
use super::{StoreError, StoreResult};
use crate::metrics::METRICS;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::Instant as Deadline;
use tokio::time::error::Elapsed;

/// Who has less time left than this learns nothing about the store from its silence.
const EVIDENCE_MIN: Duration = Duration::from_millis(20);

tokio::task_local! {
    /// When the caller of a call gives up.
    static PATIENCE: Deadline;
}

/// Runs calls of a store under the caller's own deadline. What is under way when it ends counts as failed.
///
/// # Errors
/// When the deadline came first.
pub async fn within<T>(timeout: Duration, calls: impl Future<Output = T>) -> Result<T, Elapsed> {
    let deadline = Deadline::now() + timeout;
    tokio::time::timeout_at(deadline, PATIENCE.scope(deadline, calls)).await
}

/// The deadline that [`within`] set, for whoever makes the call elsewhere.
pub fn patience() -> Option<Deadline> {
    PATIENCE.try_get().ok()
}

/// As [`within`], for a deadline that somebody else set. `None` when it came first.
pub async fn within_until<T>(
    deadline: Option<Deadline>,
    calls: impl Future<Output = T>,
) -> Option<T> {
    match deadline {
        None => Some(calls.await),
        Some(deadline) => {
            let calls = PATIENCE.scope(deadline, calls);
            tokio::time::timeout_at(deadline, calls).await.ok()
        }
    }
}

/// The name of that query in metrics.
const PING: &str = "ping";

#[derive(Debug, Clone)]
pub struct Guard {
    store: &'static str,
    /// The name of the breaker in metrics.
    circuit: &'static str,
    timeout: Duration,
    breaker: Arc<Mutex<Breaker>>,
}

/// Why a call failed: what the adapter's error says, and whether asking again may help.
#[derive(Debug)]
pub struct Failure {
    pub retryable: bool,
    pub source: anyhow::Error,
}

/// Retryable unless the adapter knows better: a connection that broke is the common case.
impl From<anyhow::Error> for Failure {
    fn from(source: anyhow::Error) -> Self {
        Self {
            retryable: true,
            source,
        }
    }
}

impl Failure {
    /// The store answered, and will answer the same again.
    pub fn permanent(error: impl Into<anyhow::Error>) -> Self {
        Self {
            retryable: false,
            source: error.into(),
        }
    }
}

impl Guard {
    /// `timeout` is the longest any call of this store may take.
    pub fn new(store: &'static str, timeout: Duration) -> Self {
        Self::with_breaker(store, timeout, Breaker::default())
    }

    pub fn with_breaker(store: &'static str, timeout: Duration, breaker: Breaker) -> Self {
        Self::for_some(store, store, timeout, breaker)
    }

    /// For calls of a store that say nothing about its other calls; their breaker has a name of its own.
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

    /// The same deadline with another breaker.
    pub fn with_new_breaker(&self, breaker: Breaker) -> Self {
        Self::for_some(self.store, self.circuit, self.timeout, breaker)
    }

    /// A closed breaker that opens as this one does.
    pub fn breaker_like(&self) -> Breaker {
        self.breaker().renewed()
    }

    /// The same breaker with another deadline, for work that is known to take longer.
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

    /// Runs one call. A failure is counted, and three in a row open the circuit for every call of this store.
    ///
    /// # Errors
    /// The call's own failure, no answer in time, or an open circuit.
    pub async fn run<T, F>(&self, query: &'static str, work: F) -> StoreResult<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if !self.breaker().admit(Instant::now()) {
            METRICS
                .store_queries_total
                .with_label_values(&[self.store, query, "circuit_open"])
                .inc();
            return Err(self.error(query, anyhow::anyhow!("the circuit is open")));
        }
        self.show();
        let mut call = Call {
            guard: self,
            query,
            started: Instant::now(),
            patience: patience(),
            outcome: None,
        };
        let result = tokio::time::timeout(self.timeout, work).await;
        call.outcome = Some(Outcome::of(&result));
        drop(call);
        self.answer(query, result)
    }

    /// For a call that was not made because the host has too many under way. It says nothing about the store.
    pub fn turned_away(&self, query: &'static str) -> StoreError {
        METRICS
            .store_queries_total
            .with_label_values(&[self.store, query, "turned_away"])
            .inc();
        self.error(query, anyhow::anyhow!("too many calls are under way"))
    }

    /// Asks whether the store is there, whatever the circuit, and without a say in it: a store that answers this in
    /// time may still be late with everything else.
    ///
    /// # Errors
    /// The call's own failure, or no answer in time.
    pub async fn ping<T, F>(&self, work: F) -> StoreResult<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let started = Instant::now();
        let result = tokio::time::timeout(self.timeout, work).await;
        let is_ok = Outcome::of(&result) == Outcome::Ok;
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
    fn of<T>(result: &Result<Result<T, Failure>, Elapsed>) -> Self {
        match result {
            Ok(Ok(_)) => Self::Ok,
            // An answer that refuses is an answer: the store is there.
            Ok(Err(failure)) if !failure.retryable => Self::Refused,
            _ => Self::Failed,
        }
    }
}

struct Call<'a> {
    guard: &'a Guard,
    query: &'static str,
    started: Instant,
    patience: Option<Deadline>,
    outcome: Option<Outcome>,
}

impl Call<'_> {
    /// Whether the caller's deadline ended it, which left the store time enough. Else a viewer hung up.
    fn came_too_late(&self) -> bool {
        self.patience.is_some_and(|end| end <= Deadline::now())
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
                "the circuit of a store changed"
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
    async fn three_failures_keep_the_fourth_call_from_the_store() {
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
    async fn a_refusal_is_an_answer_and_opens_nothing() {
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
    async fn no_answer_in_time_is_a_failure_and_a_caller_who_leaves_early_is_none() {
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
    async fn a_callers_own_deadline_is_heard_however_short_of_the_stores() {
        let guard = Guard::new("test_patience", Duration::from_secs(60));
        let silence = || guard.run("q", std::future::pending::<Result<(), Failure>>());
        for _ in 0..2 {
            assert!(within(EVIDENCE_MIN * 2, silence()).await.is_err());
        }
        assert!(within(Duration::ZERO, silence()).await.is_err());
        assert_eq!(guard.circuit(), Circuit::Closed, "no time, no evidence");
        assert!(within(EVIDENCE_MIN * 2, silence()).await.is_err());
        assert_eq!(guard.circuit(), Circuit::Open);
    }

    #[tokio::test]
    async fn a_ping_neither_opens_nor_closes_a_circuit_and_an_open_one_does_not_keep_it() {
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
