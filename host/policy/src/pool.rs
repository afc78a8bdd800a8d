//! The bounded pool of threads that run policies. Ranking is pure computation, so none of it may
//! run on the async reactor.
//!
//! The pool has lanes. The active policy's lane has one thread per core, which run nothing else,
//! so the active policy always finds a worker. Every other policy has a lane of its own, with a
//! part of the other threads, a bounded queue, and a limit on its processor time. More threads
//! than cores may be busy then; the operating system divides the cores among them, and the limits
//! on processor time bound the part of the policies that are not active.

#![expect(
    clippy::disallowed_methods,
    reason = "waits for a worker, not for a store"
)]

use super::bulkhead::{CpuCredit, LaneSize, PoolSizes};
use cpu_time::ThreadTime;
use nova_model::artifact::Digest;
use nova_model::failure::FailureKind;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Number of lanes above which those that nobody uses are removed. A lane that is removed has its
/// full credit again, so lanes are kept for a while.
const LANES_KEPT: usize = 256;

/// What a job is for, which decides where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The active policy, or what stands in for another one.
    Active,
    /// A policy that is not active, by its effective digest.
    Policy(Digest),
    /// A run that serves no viewer.
    Aside,
}

/// Times within which a job must start and be done.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    pub start: Duration,
    pub done: Duration,
}

impl Wait {
    /// The job must be done within `time`, whenever it starts.
    pub fn of(time: Duration) -> Self {
        Self {
            start: time,
            done: time,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no policy worker was free in time")]
    TooLate,
    #[error("too many rankings wait for a worker of this policy")]
    QueueFull,
    #[error(
        "the policy has used its share of processor time (policy.cpu_percent), or all policies but the active one have used theirs"
    )]
    CpuShare,
    /// A job panicked.
    #[error("the ranking was given up")]
    GivenUp,
}

impl Refused {
    /// Returns the kind under which the refusal is counted.
    pub fn kind(self) -> FailureKind {
        match self {
            Refused::CpuShare => FailureKind::CpuShare,
            Refused::TooLate | Refused::QueueFull | Refused::GivenUp => FailureKind::Pool,
        }
    }
}

#[derive(Clone)]
pub struct CpuPool {
    sizes: PoolSizes,
    /// Processor time that each policy but the active one may use, in cores.
    cores_each: f64,
    /// What all of them may use together, so that several slow ones do not take all cores.
    others: Arc<Others>,
    active_threads: Arc<rayon::ThreadPool>,
    other_threads: Arc<rayon::ThreadPool>,
    active: Arc<Queue>,
    lanes: Arc<Mutex<HashMap<Lane, Arc<Queue>>>>,
}

impl std::fmt::Debug for CpuPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuPool")
            .field("sizes", &self.sizes)
            .finish_non_exhaustive()
    }
}

/// The processor time of all policies but the active one.
#[derive(Debug)]
struct Others {
    cores: f64,
    credit: Mutex<CpuCredit>,
}

/// The jobs of one lane.
#[derive(Debug)]
struct Queue {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
    /// `None` if processor time is not limited.
    credit: Option<LaneCredit>,
}

/// The processor time of one policy, and of all that share with it.
#[derive(Debug)]
struct LaneCredit {
    own: Mutex<CpuCredit>,
    others: Arc<Others>,
}

impl Queue {
    fn new(permits: usize, waiting_max: usize, credit: Option<LaneCredit>) -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(permits)),
            waiting: AtomicUsize::new(0),
            waiting_max,
            credit,
        })
    }

    fn may_run(&self, now: Instant, cores: f64) -> bool {
        self.credit.as_ref().is_none_or(|credit| {
            locked(&credit.own).may_run(now, cores)
                && locked(&credit.others.credit).may_run(now, credit.others.cores)
        })
    }

    fn charge(&self, cpu: Duration) {
        if let Some(credit) = &self.credit {
            locked(&credit.own).charge(cpu);
            locked(&credit.others.credit).charge(cpu);
        }
    }

    /// Waits for the permit to run one job.
    async fn enter(&self, start: Duration) -> Result<OwnedSemaphorePermit, Refused> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _place = Place::take(self).ok_or(Refused::QueueFull)?;
        let acquire = self.permits.clone().acquire_owned();
        let permit = tokio::time::timeout(start, acquire).await;
        permit
            .map_err(|_| Refused::TooLate)?
            .map_err(|_| Refused::GivenUp)
    }
}

/// A place among the waiting jobs of a lane. It is free again when it is dropped, also if the
/// request is cancelled.
struct Place<'a>(&'a Queue);

impl<'a> Place<'a> {
    fn take(queue: &'a Queue) -> Option<Self> {
        let grow = |waiting| (waiting < queue.waiting_max).then_some(waiting + 1);
        queue
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow)
            .ok()?;
        Some(Self(queue))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CpuPool {
    /// Starts a pool for `workers` cores. A policy that is not active may use `cpu_percent` of
    /// them, and all such policies together twice as much, but not more than all cores.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn start(workers: usize, cpu_percent: u32) -> anyhow::Result<Self> {
        let sizes = PoolSizes::new(workers);
        let LaneSize { workers, queue } = sizes.active;
        let cores = |percent: u32| workers as f64 * f64::from(percent) / 100.0;
        let cores_others = cores((2 * cpu_percent).min(100));
        Ok(Self {
            sizes,
            cores_each: cores(cpu_percent),
            others: Arc::new(Others {
                cores: cores_others,
                credit: Mutex::new(CpuCredit::new(Instant::now(), cores_others)),
            }),
            active_threads: Arc::new(threads("policy", workers)?),
            other_threads: Arc::new(threads("policy-other", sizes.other_threads)?),
            // One permit per running job, and one per thread for a job that the thread finds when
            // it is done with another. Without it, a thread would wait until the async runtime
            // has passed on its permit. All other jobs wait for a permit, because that wait can
            // time out.
            active: Queue::new(workers * 2, queue, None),
            lanes: Arc::default(),
        })
    }

    pub fn sizes(&self) -> PoolSizes {
        self.sizes
    }

    /// Runs `job` on a worker of `lane`.
    ///
    /// # Errors
    /// If the lane is full, if the job did not start or end in time, or if the policy has used
    /// its processor time. A job that did not end in time goes on and its result is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        wait: Wait,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let asked = Instant::now();
        let (queue, threads) = match lane {
            Lane::Active => (self.active.clone(), &self.active_threads),
            Lane::Policy(_) | Lane::Aside => (self.queue(lane, asked), &self.other_threads),
        };
        if !queue.may_run(asked, self.cores_each) {
            return Err(Refused::CpuShare);
        }
        let permit = queue.enter(wait.start).await?;
        // Jobs that ran meanwhile may have spent the rest.
        if !queue.may_run(Instant::now(), self.cores_each) {
            return Err(Refused::CpuShare);
        }
        let (send, receive) = oneshot::channel();
        threads.spawn(move || {
            // Nobody waits for the result of a cancelled request.
            if send.is_closed() {
                return;
            }
            let result = charged(&queue, job);
            drop(permit);
            let _ = send.send(result);
        });
        let left = wait.done.saturating_sub(asked.elapsed());
        tokio::time::timeout(left, receive)
            .await
            .map_err(|_| Refused::TooLate)?
            .map_err(|_| Refused::GivenUp)
    }

    fn queue(&self, lane: Lane, now: Instant) -> Arc<Queue> {
        let mut lanes = locked(&self.lanes);
        if lanes.len() >= LANES_KEPT {
            lanes.retain(|_, queue| Arc::strong_count(queue) > 1);
        }
        let LaneSize { workers, queue } = match lane {
            Lane::Aside => self.sizes.aside,
            _ => self.sizes.other,
        };
        let credit = || {
            matches!(lane, Lane::Policy(_)).then(|| LaneCredit {
                own: Mutex::new(CpuCredit::new(now, self.cores_each)),
                others: self.others.clone(),
            })
        };
        lanes
            .entry(lane)
            .or_insert_with(|| Queue::new(workers, queue, credit()))
            .clone()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a job and charges its processor time, also if it panics.
fn charged<T>(queue: &Queue, job: impl FnOnce() -> T) -> T {
    struct Charge<'a>(&'a Queue, Instant, std::io::Result<ThreadTime>);
    impl Drop for Charge<'_> {
        fn drop(&mut self) {
            let cpu = self.2.as_ref().ok().and_then(|cpu| cpu.try_elapsed().ok());
            self.0.charge(cpu.unwrap_or_else(|| self.1.elapsed()));
        }
    }
    let _charge = Charge(queue, Instant::now(), ThreadTime::try_now());
    job()
}

fn threads(name: &'static str, count: usize) -> anyhow::Result<rayon::ThreadPool> {
    Ok(rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(move |index| format!("{name}-{index}"))
        .panic_handler(|_| tracing::error!("a policy job panicked; its caller gets an error"))
        .build()?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const AMPLE: Duration = Duration::from_secs(60);

    fn policy(name: &str) -> Lane {
        Lane::Policy(Digest::from_content(name.as_bytes()))
    }

    /// A job that ends when it is told to.
    struct Held {
        release: mpsc::Sender<()>,
        ended: tokio::task::JoinHandle<Result<(), Refused>>,
    }

    /// Starts a job and returns when it runs.
    async fn hold(pool: &CpuPool, lane: Lane) -> Held {
        let (release, released) = mpsc::channel();
        let (begin, begun) = oneshot::channel();
        let pool = pool.clone();
        let ended = tokio::spawn(async move {
            pool.run(lane, Wait::of(AMPLE), move || {
                let _ = begin.send(());
                let _ = released.recv();
            })
            .await
        });
        begun.await.unwrap();
        Held { release, ended }
    }

    impl Held {
        async fn end(self) {
            self.release.send(()).unwrap();
            self.ended.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn the_active_policy_finds_a_worker_while_every_other_lane_is_stuck() {
        let pool = CpuPool::start(2, 100).unwrap();
        let mut held = vec![hold(&pool, Lane::Aside).await];
        for name in ["a", "b", "c"] {
            for _ in 0..pool.sizes().other.workers {
                held.push(hold(&pool, policy(name)).await);
            }
        }
        let answers = (0..10).map(|n| pool.run(Lane::Active, Wait::of(AMPLE), move || n));
        for (n, answer) in futures_of(answers).await.into_iter().enumerate() {
            assert_eq!(answer, Ok(n));
        }
        // Another policy is not in the way either.
        assert_eq!(pool.run(policy("d"), Wait::of(AMPLE), || 1).await, Ok(1));
        for job in held {
            job.end().await;
        }
    }

    async fn futures_of<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
        let mut done = Vec::new();
        for one in all {
            done.push(one.await);
        }
        done
    }

    #[tokio::test]
    async fn a_full_lane_refuses_at_once_and_a_late_one_after_its_time() {
        let pool = CpuPool::start(1, 100).unwrap();
        let held = hold(&pool, policy("slow")).await;
        let soon = Wait {
            start: Duration::from_millis(1),
            done: AMPLE,
        };
        let late = pool.run(policy("slow"), soon, || ()).await;
        assert_eq!(late, Err(Refused::TooLate));
        let mut waiting = Vec::new();
        for _ in 0..pool.sizes().other.queue {
            let pool = pool.clone();
            let run = async move { pool.run(policy("slow"), Wait::of(AMPLE), || ()).await };
            waiting.push(tokio::spawn(run));
        }
        let lanes = pool.lanes.clone();
        let full = move || {
            let queue = lanes.lock().unwrap()[&policy("slow")].clone();
            queue.waiting.load(Ordering::Relaxed) == queue.waiting_max
        };
        while !full() {
            tokio::task::yield_now().await;
        }
        let refused = pool.run(policy("slow"), Wait::of(AMPLE), || ()).await;
        assert_eq!(refused, Err(Refused::QueueFull));
        held.end().await;
        for job in waiting {
            assert_eq!(job.await.unwrap(), Ok(()));
        }
    }

    #[tokio::test]
    async fn a_policy_that_used_its_processor_time_is_refused_until_it_has_credit_again() {
        // One hundredth of a core, so the burst is 50 ms.
        let pool = CpuPool::start(1, 1).unwrap();
        let burn = || {
            let cpu = ThreadTime::now();
            while cpu.elapsed() < Duration::from_millis(60) {}
        };
        let slow = policy("slow");
        assert_eq!(pool.run(slow, Wait::of(AMPLE), burn).await, Ok(()));
        let refused = pool.run(slow, Wait::of(AMPLE), || ()).await;
        assert_eq!(refused, Err(Refused::CpuShare));
        assert_eq!(refused.unwrap_err().kind(), FailureKind::CpuShare);
        for lane in [Lane::Active, Lane::Aside, policy("other")] {
            assert_eq!(pool.run(lane, Wait::of(AMPLE), || ()).await, Ok(()));
        }
        while pool.run(slow, Wait::of(AMPLE), || ()).await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn several_slow_policies_share_a_limit_and_leave_the_active_one_alone() {
        // One hundredth of a core for each and two for all, so the bursts are 50 ms and 100 ms.
        let pool = CpuPool::start(1, 1).unwrap();
        let slow = ["a", "b", "c", "d"].map(policy);
        let begun = Instant::now();
        let mut ran = 0;
        for lane in slow {
            let burn = || {
                let cpu = ThreadTime::now();
                while cpu.elapsed() < Duration::from_millis(60) {}
            };
            ran += u32::from(pool.run(lane, Wait::of(AMPLE), burn).await.is_ok());
        }
        // What all of them earn in the time that has passed may pay for one job more.
        let earned = begun.elapsed().as_secs_f64() * 0.02 / 0.06;
        assert!(f64::from(ran) <= 2.0 + earned, "{ran} of 4 ran");
        for lane in [Lane::Active, Lane::Aside] {
            assert_eq!(pool.run(lane, Wait::of(AMPLE), || ()).await, Ok(()));
        }
        while pool.run(slow[3], Wait::of(AMPLE), || ()).await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_job_that_panics_gives_its_place_back() {
        let pool = CpuPool::start(1, 100).unwrap();
        for _ in 0..5 {
            let panicked = pool
                .run(policy("p"), Wait::of(AMPLE), || panic!("no"))
                .await;
            assert_eq!(panicked, Err::<(), _>(Refused::GivenUp));
        }
        assert_eq!(pool.run(policy("p"), Wait::of(AMPLE), || 1).await, Ok(1));
    }
}
