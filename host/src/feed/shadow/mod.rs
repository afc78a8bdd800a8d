//! Shadow runs: policies in shadow rank the candidates of a served ranking after the response
//! was sent, and their order is compared with the served one. A shadow run creates no exposure
//! and no snapshot, and it never counts against a serving policy.
//!
//! All shadow runs share one thread with the lowest priority and a limited share of one core, so
//! that threads that serve viewers never wait for it. The queue is short; a ranking that does
//! not fit is dropped and counted. A shadow therefore ranks as many requests as its CPU share
//! allows.

mod share;
mod watch;

use super::decision::Decision;
use super::failures::SharedFailureLog;
use crate::config::Live;
use arc_swap::ArcSwap;
use cpu_time::ThreadTime;
use nova_model::artifact::Digest;
use nova_model::budget::{Call, Granted, Thresholds};
use nova_model::failure::FailureKind;
use nova_policy::compare::compare;
use nova_policy::loaded::LoadedPolicy;
use nova_policy::ranking::{Ranking, rank};
use nova_support::clock::unix_ms;
use share::CpuShare;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use watch::Watch;
pub use watch::{ShadowReport, Stopped};

/// Rankings that may wait in the queue. Each of them keeps about 80 KiB of candidates in memory.
const QUEUE_MAX: usize = 64;
/// The lowest priority: on a busy machine, the thread gets only idle processor time.
const NICENESS: i32 = 19;
/// Factor from a policy's deadline to the wall-clock limit of a shadow run. A thread with the
/// lowest priority can be paused in the middle of a run, so a policy is judged by its processor
/// time. The wall-clock limit ends a run that never finishes.
const WALL_CLOCK_FACTOR: u32 = 4;
type Job = (Arc<Decision>, Vec<Arc<LoadedPolicy>>);

#[derive(Debug)]
pub struct Shadows {
    queue: SyncSender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: ArcSwap<Settings>,
    /// Watches by effective digest. The lock is never taken on the path of a viewer's request.
    watches: Mutex<HashMap<Digest, Watch>>,
    dropped: AtomicU64,
    failures: Arc<SharedFailureLog>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Settings {
    /// Share of one core, 0 to 1.
    share: f64,
    thresholds: Thresholds,
}

impl Settings {
    fn from_live(live: &Live) -> Self {
        Self {
            share: f64::from(live.shadow.cpu_percent) / 100.0,
            thresholds: live.failure_budget.thresholds(),
        }
    }
}

impl Shadows {
    /// Starts the thread. It ends when the last handle is dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(live: &Live, failures: Arc<SharedFailureLog>) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(Settings::from_live(live)),
            watches: Mutex::default(),
            dropped: AtomicU64::new(0),
            failures,
        });
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let worker = shared.clone();
        std::thread::Builder::new()
            .name("shadow".into())
            .spawn(move || worker.run(&jobs))?;
        Ok(Self { queue, shared })
    }

    pub fn configure(&self, live: &Live) {
        let settings = Settings::from_live(live);
        if **self.shared.settings.load() != settings {
            self.shared.settings.store(Arc::new(settings));
        }
    }

    /// Queues a served ranking for these policies. Drops and counts it if the queue is full.
    pub fn offer(&self, shadows: &[Arc<LoadedPolicy>], decision: &Arc<Decision>) {
        if shadows.is_empty() || decision.task.set.is_empty() {
            return;
        }
        let job = (decision.clone(), shadows.to_vec());
        if self.queue.try_send(job).is_err() {
            self.shared.drop_one(shadows);
        }
    }

    /// Reports the shadow runs of a policy on this host.
    pub fn report(&self, policy: &LoadedPolicy) -> ShadowReport {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        match self.shared.watches().get(&policy.effective_digest) {
            Some(watch) => watch.report(Instant::now(), dropped),
            None => watch::unrun(policy),
        }
    }
}

impl Shared {
    fn watches(&self) -> MutexGuard<'_, HashMap<Digest, Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_one(&self, policies: &[Arc<LoadedPolicy>]) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        for policy in policies {
            policy.metrics.observe_shadow("dropped");
        }
    }

    fn run(&self, jobs: &Receiver<Job>) {
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::warn!(%error, "could not lower the shadow thread's priority; it stays normal");
        }
        let mut cpu_share = CpuShare::new(Instant::now());
        while let Ok((decision, policies)) = jobs.recv() {
            let settings = **self.settings.load();
            self.forget_all_but(&policies);
            if settings.share <= 0.0 {
                self.drop_one(&policies);
                continue;
            }
            for policy in &policies {
                if self.is_stopped(policy) {
                    continue;
                }
                let cpu = self.run_one(policy, &decision, &settings.thresholds);
                std::thread::sleep(cpu_share.spend(Instant::now(), cpu, settings.share));
            }
        }
    }

    /// Removes the state of policies that are no longer in shadow, so that a policy that returns
    /// to shadow starts with empty counts.
    fn forget_all_but(&self, policies: &[Arc<LoadedPolicy>]) {
        self.watches()
            .retain(|digest, _| policies.iter().any(|p| p.effective_digest == *digest));
    }

    fn is_stopped(&self, policy: &LoadedPolicy) -> bool {
        let dropped = self.dropped.load(Ordering::Relaxed);
        self.watches()
            .entry(policy.effective_digest)
            .or_insert_with(|| Watch::begin(policy, Instant::now(), unix_ms(), dropped))
            .is_stopped()
    }

    /// Runs one policy on a ranking and returns the processor time that it used.
    fn run_one(
        &self,
        policy: &LoadedPolicy,
        decision: &Decision,
        thresholds: &Thresholds,
    ) -> Duration {
        let (begun, cpu) = (Instant::now(), ThreadTime::try_now());
        let deadline = policy.deadline();
        let granted = Granted {
            deadline,
            left: deadline * WALL_CLOCK_FACTOR,
        };
        let budget = policy.budget_without_deadline(granted.left);
        let answer = rank(&policy.running(budget).uncounted(), decision.task.input());
        let cpu = cpu.and_then(|cpu| cpu.try_elapsed());
        let cpu = cpu.unwrap_or_else(|_| begun.elapsed());
        if let Err(failure) = &answer {
            self.failures.record(&policy.spec.policy, failure);
        }
        let failure = match &answer {
            Err(failure) => Some(failure.kind),
            Ok(_) => (cpu > deadline).then_some(FailureKind::Deadline),
        };
        let viewer = decision.task.request.user_id;
        let outcome = match Call::from_outcome(viewer, failure, cpu, granted) {
            Some(call) => {
                self.note(policy, decision, answer.ok(), call, thresholds);
                failure.map_or("ok", FailureKind::as_str)
            }
            // The host had no instance or no time for this run, so it says nothing about the
            // policy.
            None => {
                if let Some(watch) = self.watches().get_mut(&policy.effective_digest) {
                    watch.dropped();
                }
                "dropped"
            }
        };
        policy.metrics.observe_shadow(outcome);
        cpu
    }

    fn note(
        &self,
        policy: &LoadedPolicy,
        decision: &Decision,
        ranking: Option<Ranking>,
        call: Call,
        thresholds: &Thresholds,
    ) {
        let compared = ranking.map(|ranking| {
            let authors = &decision.task.set.author_ids;
            let served = &decision.ranked.ranking.rows;
            let page = decision.task.request.limit as usize;
            compare(authors, served, &ranking.rows, page)
        });
        let mut watches = self.watches();
        let Some(watch) = watches.get_mut(&policy.effective_digest) else {
            return;
        };
        if let Some(comparison) = compared {
            watch.compared(&comparison);
        }
        if let Some(reason) = watch.ran(call, thresholds, Instant::now(), unix_ms()) {
            tracing::warn!(
                policy = %policy.spec.policy,
                reason,
                "a shadow policy has spent its error budget; it is no longer run in shadow"
            );
        }
    }
}
