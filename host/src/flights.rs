//! Shared flights: if several requests of one viewer miss a cache together, one of them fetches and
//! the others wait for it.

#![expect(
    clippy::disallowed_methods,
    reason = "waits for another request, not for a store"
)]

use moka::sync::Cache;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Time after which an unused lock is removed. A fetch ends within the deadlines of its stores,
/// so a lock that is idle for longer protects nothing.
const IDLE: Duration = Duration::from_secs(60);

/// One lock for each viewer whose data is being fetched.
#[derive(Debug)]
pub struct Flights(Cache<u64, Arc<Mutex<()>>>);

/// A viewer's turn to fetch. The next request begins when it is dropped.
#[derive(Debug)]
pub struct Flight {
    /// True if another request was fetching, so that a cache may have its result now.
    pub waited: bool,
    /// `None` if the wait was too long. The request then fetches for itself, so that it does not
    /// also wait for the next holder of the lock.
    _guard: Option<OwnedMutexGuard<()>>,
}

impl Flights {
    /// Bounds the number of viewers with a lock.
    pub fn new(viewers_max: u64) -> Self {
        let locks = Cache::builder().max_capacity(viewers_max);
        Self(locks.time_to_idle(IDLE).build())
    }

    /// Waits for the viewer's other requests, at most for `timeout`.
    pub async fn join(&self, viewer: u64, timeout: Duration) -> Flight {
        let lock = self.0.get_with(viewer, Arc::default);
        if let Ok(guard) = lock.clone().try_lock_owned() {
            return Flight {
                waited: false,
                _guard: Some(guard),
            };
        }
        Flight {
            waited: true,
            _guard: tokio::time::timeout(timeout, lock.lock_owned()).await.ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_waits_for_its_viewer_only_and_not_longer_than_it_may() {
        let flights = Flights::new(10);
        let first = flights.join(1, Duration::ZERO).await;
        assert!(!first.waited);
        assert!(!flights.join(2, Duration::ZERO).await.waited);
        let impatient = flights.join(1, Duration::ZERO).await;
        assert!(impatient.waited && impatient._guard.is_none());
        drop(first);
        assert!(!flights.join(1, Duration::ZERO).await.waited);
    }
}
