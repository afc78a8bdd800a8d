//! Places for uploads. An upload takes one before its body is read, so that bodies in memory are
//! few no matter how many clients send one. A client that sends `Expect: 100-continue` sends its
//! body only when it has a place.

use crate::http::problem::Problem;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bodies in memory: one that is checked and one that arrives meanwhile.
const BODIES_MAX: usize = 2;
/// Uploads that wait for a place. They hold a connection each, and no body.
const WAITING_MAX: usize = 8;
const RETRY_AFTER_S: u64 = 30;

#[derive(Debug)]
pub struct Uploads {
    bodies: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Default for Uploads {
    fn default() -> Self {
        Self {
            bodies: Arc::new(Semaphore::new(BODIES_MAX)),
            waiting: Arc::new(Semaphore::new(BODIES_MAX + WAITING_MAX)),
        }
    }
}

/// The place of one upload, held until its answer is known.
#[derive(Debug)]
pub struct UploadPlace {
    _body: OwnedSemaphorePermit,
    _waiting: OwnedSemaphorePermit,
}

impl Uploads {
    /// Waits for a place.
    ///
    /// # Errors
    /// 503 with the time to wait if too many uploads wait already.
    pub async fn place(&self) -> Result<UploadPlace, Problem> {
        let full = || Problem {
            retry_after_s: Some(RETRY_AFTER_S),
            ..Problem::unavailable(
                "too many other uploads are waiting; nothing was changed, try again in a minute",
            )
        };
        let waiting = self.waiting.clone().try_acquire_owned();
        let waiting = waiting.map_err(|_| full())?;
        let body = self.bodies.clone().acquire_owned().await;
        Ok(UploadPlace {
            _body: body.map_err(|_| full())?,
            _waiting: waiting,
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn two_uploads_have_a_place_a_few_wait_and_the_rest_is_told_when_to_come_back() {
        let uploads = Uploads::default();
        let first = uploads.place().await.unwrap();
        let _second = uploads.place().await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| Box::pin(uploads.place()))
            .collect();
        for place in &mut waiting {
            assert!(place.now_or_never().is_none());
        }
        let refused = uploads.place().await.unwrap_err();
        assert_eq!(
            (refused.status, refused.retry_after_s),
            (503, Some(RETRY_AFTER_S))
        );
        drop(first);
        assert!(waiting.remove(0).await.is_ok());
    }
}
