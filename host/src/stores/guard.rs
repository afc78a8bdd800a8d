//! What stands around every call of a store that is a server: its circuit breaker, its deadline, its
//! metrics, and the log of slow queries.
//!
//! Outcomes are recorded in `Drop`, so that a call whose caller gave up is in the histogram too, and
//! counts as a failure if it had been given time enough.

use super::breaker::{Breaker, Circuit};
use super::{StoreError, StoreResult};
use crate::metrics::METRICS;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct Guard {
    store: &'static str,
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
        let guard = Self {
            store,
            timeout,
            breaker: Arc::new(Mutex::new(breaker)),
        };
        guard.show();
        guard
    }

    /// The same deadline with another breaker.
    pub fn with_new_breaker(&self, breaker: Breaker) -> Self {
        Self::with_breaker(self.store, self.timeout, breaker)
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
            outcome: None,
        };
        let result = tokio::time::timeout(self.timeout, work).await;
        call.outcome = Some(match &result {
            // An answer that refuses is an answer: the store is there.
            Ok(Ok(_)) => Outcome::Ok,
            Ok(Err(failure)) if !failure.retryable => Outcome::Refused,
            _ => Outcome::Failed,
        });
        drop(call);
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
            .with_label_values(&[self.store])
            .set(self.circuit().gauge());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Refused,
    Failed,
}

struct Call<'a> {
    guard: &'a Guard,
    query: &'static str,
    started: Instant,
    outcome: Option<Outcome>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let (now, took) = (Instant::now(), self.started.elapsed());
        // Callers with deadlines of their own are shorter than the store's by a little, or a viewer hung up early.
        let outcome = match self.outcome {
            None if took < self.guard.timeout / 2 => None,
            outcome => Some(outcome.unwrap_or(Outcome::Failed)),
        };
        let circuit = {
            let mut breaker = self.guard.breaker();
            let before = breaker.circuit();
            match outcome {
                None => breaker.abandoned(now),
                Some(Outcome::Failed) => breaker.failed(now),
                Some(Outcome::Ok | Outcome::Refused) => breaker.succeeded(),
            }
            (before, breaker.circuit())
        };
        if let (before, after) = circuit
            && before != after
        {
            tracing::warn!(
                store = self.guard.store,
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
            let _ = tokio::time::timeout(Duration::from_millis(1), left).await;
        }
        assert_eq!(guard.circuit(), Circuit::Closed);
        for _ in 0..3 {
            let silent = guard.run("q", std::future::pending::<Result<(), Failure>>());
            assert!(silent.await.is_err());
        }
        assert_eq!(guard.circuit(), Circuit::Open);
    }
}
