//! The bounds that keep one policy from taking the workers of the others: the sizes of the pool
//! and the processor time of each policy. All functions are pure; time is passed in.

use std::time::{Duration, Instant};

/// Queued jobs per worker of the active policy. A ranking takes less than a millisecond, so a job
/// at the end of this queue would hardly be done within a request's budget.
const ACTIVE_QUEUE_PER_WORKER: usize = 512;
/// Queued jobs per worker of another policy.
const OTHER_QUEUE_PER_WORKER: usize = 32;
/// Smallest number of threads for all policies that are not active. Each slow policy keeps the
/// threads of its share busy, and as many policies as this can do so before others wait for them.
const OTHER_THREADS_MIN: usize = 16;
/// Explanations and previews that run at once, and that wait.
const ASIDE_WORKERS: usize = 1;
const ASIDE_QUEUE: usize = 8;
/// Time for which a policy may use more than its share, if it used nothing before.
const BURST: Duration = Duration::from_secs(5);

/// Workers and queue of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneSize {
    pub workers: usize,
    pub queue: usize,
}

/// Sizes of the pool. They follow from the number of workers, one per core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSizes {
    /// The lane of the active policy. Its workers run nothing else.
    pub active: LaneSize,
    /// The lane of each other policy.
    pub other: LaneSize,
    /// The lane of explanations and previews.
    pub aside: LaneSize,
    /// Threads of all lanes but the active policy's. More lanes than that may be busy only in the
    /// sense that their jobs wait.
    pub other_threads: usize,
}

impl PoolSizes {
    pub fn new(workers: usize) -> Self {
        let workers = workers.max(1);
        let lane = (workers / 2).max(1);
        Self {
            active: LaneSize {
                workers,
                queue: workers * ACTIVE_QUEUE_PER_WORKER,
            },
            other: LaneSize {
                workers: lane,
                queue: lane * OTHER_QUEUE_PER_WORKER,
            },
            aside: LaneSize {
                workers: ASIDE_WORKERS,
                queue: ASIDE_QUEUE,
            },
            other_threads: (2 * workers).max(OTHER_THREADS_MIN),
        }
    }

    /// Returns the number of jobs that can run at once.
    pub fn threads(&self) -> usize {
        self.active.workers + self.other_threads
    }
}

/// A policy's limit on processor time, as a share of the pool: credit grows with the wall clock
/// and is spent by work.
///
/// A job runs while there is credit, and its processor time is charged when it ends. The credit
/// may become negative, so the limit holds on average, whatever a job takes.
#[derive(Debug)]
pub struct CpuCredit {
    credit_s: f64,
    at: Instant,
}

impl CpuCredit {
    /// `cores` is the limit, in cores.
    pub fn new(now: Instant, cores: f64) -> Self {
        Self {
            credit_s: burst_s(cores),
            at: now,
        }
    }

    pub fn may_run(&mut self, now: Instant, cores: f64) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * cores;
        self.at = self.at.max(now);
        self.credit_s = (self.credit_s + earned).min(burst_s(cores));
        self.credit_s > 0.0
    }

    pub fn charge(&mut self, cpu: Duration) {
        self.credit_s -= cpu.as_secs_f64();
    }
}

fn burst_s(cores: f64) -> f64 {
    BURST.as_secs_f64() * cores
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_pool_leaves_the_active_policy_a_worker_that_no_other_policy_can_take() {
        for workers in 0..100 {
            let sizes = PoolSizes::new(workers);
            assert!(sizes.active.workers >= 1 && sizes.other.workers >= 1);
            assert!(sizes.threads() >= sizes.active.workers + sizes.other.workers);
            assert!(sizes.other.workers <= sizes.active.workers);
            // A single policy cannot take all threads of the others.
            assert!(sizes.other.workers + sizes.aside.workers < sizes.other_threads);
        }
    }

    proptest! {
        #[test]
        fn jobs_that_run_only_with_credit_stay_within_their_share(
            jobs in proptest::collection::vec((0_u64..100_000, 1_u64..300_000), 1..300),
            percent in 1_u32..=100,
        ) {
            let cores = f64::from(percent) / 100.0 * 2.0;
            let start = Instant::now();
            let mut credit = CpuCredit::new(start, cores);
            let (mut now, mut spent) = (start, Duration::ZERO);
            for (pause_us, cpu_us) in jobs {
                now += Duration::from_micros(pause_us);
                if credit.may_run(now, cores) {
                    let cpu = Duration::from_micros(cpu_us);
                    spent += cpu;
                    credit.charge(cpu);
                }
            }
            let allowed = now.duration_since(start).as_secs_f64() * cores + burst_s(cores) + 0.3;
            prop_assert!(spent.as_secs_f64() <= allowed + 1e-6, "{spent:?} of {allowed}");
        }

        #[test]
        fn a_policy_below_its_share_is_never_refused(
            jobs in proptest::collection::vec(1_u64..50_000, 1..300),
        ) {
            let cores = 0.5;
            let mut now = Instant::now();
            let mut credit = CpuCredit::new(now, cores);
            for cpu_us in jobs {
                prop_assert!(credit.may_run(now, cores));
                let cpu = Duration::from_micros(cpu_us);
                credit.charge(cpu);
                now += cpu * 2;
            }
        }
    }
}
