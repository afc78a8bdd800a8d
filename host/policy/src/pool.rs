//! The bounded pool of threads that run policies. Ranking is pure computation, so more threads
//! than cores would only add waiting, and none of it may run on the async reactor.

#![expect(
    clippy::disallowed_methods,
    reason = "waits for a worker, not for a store"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

#[derive(Clone)]
pub struct CpuPool {
    threads: Arc<rayon::ThreadPool>,
    /// One permit per running or queued job. There are twice as many as threads, so the queue is
    /// as long as the number of threads. All other jobs wait for a permit, because that wait can
    /// time out.
    permits: Arc<Semaphore>,
}

impl std::fmt::Debug for CpuPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuPool")
            .field("threads", &self.threads.current_num_threads())
            .finish_non_exhaustive()
    }
}

/// No worker was free in time, or the job panicked.
#[derive(Debug, thiserror::Error)]
#[error("no policy worker was free in time")]
pub struct Busy;

impl CpuPool {
    /// # Errors
    /// When the threads cannot be started.
    pub fn start(threads: usize) -> anyhow::Result<Self> {
        let threads_pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("policy-{index}"))
            .panic_handler(|_| tracing::error!("a policy job panicked; its caller gets an error"))
            .build()?;
        Ok(Self {
            threads: Arc::new(threads_pool),
            permits: Arc::new(Semaphore::new(threads * 2)),
        })
    }

    /// Runs `job` on a worker. Returns [`Busy`] if it is not done after `wait`.
    pub async fn run<T: Send + 'static>(
        &self,
        wait: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let asked = Instant::now();
        let acquire = self.permits.clone().acquire_owned();
        let permit = tokio::time::timeout(wait, acquire)
            .await
            .map_err(|_| Busy)?
            .map_err(|_| Busy)?;
        let (send, receive) = oneshot::channel();
        self.threads.spawn(move || {
            let result = job();
            drop(permit);
            // The request may have been cancelled meanwhile, so a failed send is ignored.
            let _ = send.send(result);
        });
        // A job queued behind a slow one still waits here, so this wait is limited as well.
        let left = wait.saturating_sub(asked.elapsed());
        tokio::time::timeout(left, receive)
            .await
            .map_err(|_| Busy)?
            .map_err(|_| Busy)
    }
}
