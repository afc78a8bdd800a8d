//! One policy is tried at a time, on a thread below everything that serves: a trial is a few seconds of computing at best
//! and some minutes at worst, and whoever uploads must not be able to take the processors from viewers.

use super::DeployError;
use crate::policy::compiler::lower_priority;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Uploads that may wait for the one that is being tried; each holds its bytes.
const WAITING_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct Admissions {
    places: Arc<Semaphore>,
    turn: Arc<Semaphore>,
}

impl Default for Admissions {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(1 + WAITING_MAX)),
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

/// Held for as long as a policy is tried.
pub(super) struct Turn {
    _place: OwnedSemaphorePermit,
    _turn: OwnedSemaphorePermit,
}

impl Admissions {
    /// # Errors
    /// When too many wait already.
    pub async fn turn(&self) -> Result<Turn, DeployError> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| DeployError::Busy)?;
        let turn = self.turn.clone().acquire_owned().await;
        Ok(Turn {
            _place: place,
            _turn: turn.map_err(|_| DeployError::Busy)?,
        })
    }
}

impl Turn {
    /// On a thread of its own. `None` when it panicked. The turn ends with the trial, whether anybody still waits or not.
    pub async fn run<T: Send + 'static>(
        self,
        trial: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, answer) = oneshot::channel();
        let run = move || {
            lower_priority();
            let tried = trial();
            drop(self);
            let _ = done.send(tried);
        };
        std::thread::Builder::new()
            .name("admission".into())
            .spawn(run)
            .ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_is_tried_at_a_time_a_few_wait_and_the_rest_is_turned_away() {
        let admissions = Arc::new(Admissions::default());
        let first = admissions.turn().await.unwrap();
        let waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let admissions = admissions.clone();
                tokio::spawn(async move { admissions.turn().await.unwrap().run(|| 1).await })
            })
            .collect();
        while admissions.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(admissions.turn().await, Err(DeployError::Busy)));
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        assert_eq!(first.run(|| panic!("a trial")).await, None::<()>);
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), Some(1));
        }
    }
}
