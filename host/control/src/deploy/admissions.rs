//! Queue for policy trials. One policy is tried at a time, on a thread with a lower priority
//! than the threads that serve requests. A trial takes a few seconds of computation at best and
//! some minutes at worst, so an upload must not take the processors from viewers.

use super::DeployError;
use nova_policy::compiler::lower_priority;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Maximum number of uploads that wait for the one being tried. Each of them holds its bytes in
/// memory.
const WAITING_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct Admissions {
    places: Arc<Semaphore>,
    trial: Arc<Semaphore>,
}

impl Default for Admissions {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(1 + WAITING_MAX)),
            trial: Arc::new(Semaphore::new(1)),
        }
    }
}

/// Permit to try a policy, held during the trial.
pub(super) struct TrialPermit {
    _place: OwnedSemaphorePermit,
    _trial: OwnedSemaphorePermit,
}

impl Admissions {
    /// Waits for the permit to try a policy.
    ///
    /// # Errors
    /// Returns [`DeployError::Busy`] if too many uploads are waiting already.
    pub async fn permit(&self) -> Result<TrialPermit, DeployError> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| DeployError::Busy)?;
        let trial = self.trial.clone().acquire_owned().await;
        Ok(TrialPermit {
            _place: place,
            _trial: trial.map_err(|_| DeployError::Busy)?,
        })
    }
}

impl TrialPermit {
    /// Runs the trial on its own thread and tells it if the caller still waits. Returns `None` if
    /// the trial panicked. The permit is released when the trial ends, even if the caller no
    /// longer waits for it.
    pub async fn run<T: Send + 'static>(
        self,
        trial: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, answer) = oneshot::channel::<T>();
        let run = move || {
            lower_priority();
            let tried = trial(&|| !done.is_closed());
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
    async fn one_upload_is_tried_at_a_time_a_few_wait_and_the_rest_are_refused() {
        let admissions = Arc::new(Admissions::default());
        let first = admissions.permit().await.unwrap();
        let waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let admissions = admissions.clone();
                tokio::spawn(async move { admissions.permit().await.unwrap().run(|_| 1).await })
            })
            .collect();
        while admissions.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(admissions.permit().await, Err(DeployError::Busy)));
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        assert_eq!(first.run(|_| panic!("a trial")).await, None::<()>);
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), Some(1));
        }
    }
}
