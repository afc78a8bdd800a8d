//! Policies in shadow: they rank the candidates that were just ranked, behind the answer and for nobody, and what they
//! would have shown is compared with what was. No exposure, no snapshot, and nothing of it counts against what serves.
//!
//! One thread of its own at the lowest priority, with a share of one core, so that the viewers' threads never wait for it;
//! a short queue, and what does not fit is dropped and counted. A shadow therefore sees as many rankings as its share pays for.

mod share;
mod watch;

use super::decision::Decision;
use crate::clock::unix_ms;
use crate::config::Live;
use crate::metrics::METRICS;
use crate::policy::Stage;
use crate::policy::artifact::Digest;
use crate::policy::budget::{Call, Thresholds};
use crate::policy::compare::compare;
use crate::policy::failure::{FailureKind, PolicyFailure};
use crate::policy::features::Feature;
use crate::policy::loaded::{LoadedPolicy, Running};
use crate::policy::ranking::{Ranking, Stages, rank};
use arc_swap::ArcSwap;
use cpu_time::ThreadTime;
use nova_policy_sdk::{Candidates, Ranked, Request};
use share::CpuShare;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use watch::Watch;
pub use watch::{ShadowReport, Stopped};

/// Rankings that may wait. Each keeps its candidates, some 80 KiB, from being freed.
const QUEUE_MAX: usize = 64;
/// The lowest: on a busy machine the thread gets what is left over.
const NICENESS: i32 = 19;
/// A thread of the lowest priority may be kept waiting in the middle of a run. What a policy may take is judged by its
/// processor time; this many times that by the clock ends a run all the same.
const PATIENCE: u32 = 4;
type Job = (Arc<Decision>, Vec<Arc<LoadedPolicy>>);

#[derive(Debug)]
pub struct Shadows {
    queue: SyncSender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: ArcSwap<Settings>,
    /// By effective digest. Never locked on a viewer's way.
    watches: Mutex<HashMap<Digest, Watch>>,
    dropped: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Settings {
    /// Of one core.
    share: f64,
    thresholds: Thresholds,
}

impl Settings {
    fn of(live: &Live) -> Self {
        Self {
            share: f64::from(live.shadow.cpu_percent) / 100.0,
            thresholds: live.failure_budget.thresholds(),
        }
    }
}

impl Shadows {
    /// Starts the thread; it ends with the last handle.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(live: &Live) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(Settings::of(live)),
            watches: Mutex::default(),
            dropped: AtomicU64::new(0),
        });
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let worker = shared.clone();
        std::thread::Builder::new()
            .name("shadow".into())
            .spawn(move || worker.run(&jobs))?;
        Ok(Self { queue, shared })
    }

    pub fn configure(&self, live: &Live) {
        let settings = Settings::of(live);
        if **self.shared.settings.load() != settings {
            self.shared.settings.store(Arc::new(settings));
        }
    }

    /// Has these policies rank beside a ranking that was just made, if there is time for it.
    pub fn offer(&self, shadows: &[Arc<LoadedPolicy>], decision: &Arc<Decision>) {
        if shadows.is_empty() || decision.job.set.is_empty() {
            return;
        }
        let job = (decision.clone(), shadows.to_vec());
        if self.queue.try_send(job).is_err() {
            self.shared.drop_one(shadows);
        }
    }

    /// How a policy in shadow is doing on this host.
    pub fn report(&self, policy: &LoadedPolicy) -> ShadowReport {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        match self.shared.watches().get(&policy.effective_digest) {
            Some(watch) => watch.report(Instant::now(), dropped),
            None => watch::unrun(policy),
        }
    }
}

fn count(policy: &LoadedPolicy, outcome: &str) {
    METRICS
        .shadow_runs_total
        .with_label_values(&[&policy.spec.policy.to_string(), outcome])
        .inc();
}

impl Shared {
    fn watches(&self) -> MutexGuard<'_, HashMap<Digest, Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_one(&self, policies: &[Arc<LoadedPolicy>]) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        for policy in policies {
            count(policy, "dropped");
        }
    }

    fn run(&self, jobs: &Receiver<Job>) {
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::warn!(%error, "shadow runs keep the priority of everything else");
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

    /// What is not in shadow any more begins anew when it is again.
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

    /// Returns the processor time that it took.
    fn run_one(
        &self,
        policy: &LoadedPolicy,
        decision: &Decision,
        thresholds: &Thresholds,
    ) -> Duration {
        let (begun, cpu) = (Instant::now(), ThreadTime::try_now());
        let deadline = policy.deadline();
        let budget = policy.budget_without_deadline(deadline * PATIENCE);
        let answer = rank(&Uncounted(policy.running(budget)), decision.job.input());
        let cpu = cpu.and_then(|cpu| cpu.try_elapsed());
        let cpu = cpu.unwrap_or_else(|_| begun.elapsed());
        let failure = match &answer {
            Err(failure) => Some(failure.kind),
            Ok(_) => (cpu > deadline).then_some(FailureKind::Deadline),
        };
        let outcome = match Call::of(failure, cpu, deadline) {
            Some(call) => {
                self.note(policy, decision, answer.ok(), call, thresholds);
                failure.map_or("ok", FailureKind::as_str)
            }
            // The host had no instance or no time for it: nothing that tells of the policy.
            None => {
                if let Some(watch) = self.watches().get_mut(&policy.effective_digest) {
                    watch.dropped();
                }
                "dropped"
            }
        };
        count(policy, outcome);
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
            let authors = &decision.job.set.author_ids;
            let served = &decision.ranked.ranking.rows;
            let page = decision.job.request.limit as usize;
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
                "a policy in shadow has spent its failure budget; it is not run any more"
            );
        }
    }
}

/// The stages of a policy, without its metrics: those tell of what viewers got.
struct Uncounted<'a>(Running<'a>);

impl Stages for Uncounted<'_> {
    fn features(&self, stage: Stage) -> &[Feature] {
        self.0.features(stage)
    }

    fn dedup(
        &self,
        request: &Request,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<u32>, PolicyFailure> {
        self.0.dedup(request, candidates)
    }

    fn score(
        &self,
        request: &Request,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<f32>, PolicyFailure> {
        self.0.score(request, candidates)
    }

    fn saturate(&self, request: &Request, ranked: &Ranked<'_>) -> Result<Vec<u32>, PolicyFailure> {
        self.0.saturate(request, ranked)
    }
}
