//! The rungs that rank: the routed policy, the last good one, the native copy. The order is pure
//! and known beforehand; one worker climbs down it, so a failure costs no second wait for a worker.

use super::snapshot::{Algo, ServedBy, ServedPolicy};
use crate::error::{REQUEST_ID, request_id};
use crate::policy::Stage;
use crate::policy::budget::Call;
use crate::policy::deploy::Serving;
use crate::policy::failure::{FailureKind, PolicyFailure};
use crate::policy::features::CandidateSet;
use crate::policy::loaded::LoadedPolicy;
use crate::policy::native::{Native, guarded};
use crate::policy::pool::CpuPool;
use crate::policy::ranking::{RankInput, Ranking, rank};
use cpu_time::ThreadTime;
use nova_policy_sdk::Request;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Ranked {
    pub ranking: Ranking,
    pub policy: ServedPolicy,
    pub served_by: ServedBy,
}

/// What is ranked, owned, because it travels to another thread.
#[derive(Debug, Clone)]
pub struct Job {
    pub request: Request,
    pub set: Arc<CandidateSet>,
    pub seen: Vec<bool>,
}

impl Job {
    pub fn input(&self) -> RankInput<'_> {
        RankInput {
            request: &self.request,
            set: &self.set,
            seen: &self.seen,
        }
    }
}

/// The policy to try when `routed` fails: the active one, or, if that is the one that failed, the
/// one active before it.
pub fn last_good(routed: Option<&LoadedPolicy>, serving: &Serving) -> Option<Arc<LoadedPolicy>> {
    let routed = routed.map(|policy| policy.effective_digest);
    serving
        .active_in_service()
        .into_iter()
        .chain(&serving.warm)
        .find(|policy| Some(policy.effective_digest) != routed)
        .cloned()
}

/// Ranks on a worker, within `budget`; natively when no policy is in service. `None` only if even the native copy failed.
pub async fn rank_down(
    pool: &CpuPool,
    routed: Option<Arc<LoadedPolicy>>,
    last_good: Option<Arc<LoadedPolicy>>,
    job: Job,
    budget: Duration,
) -> Option<Ranked> {
    let deadline = Instant::now() + budget;
    let (on_worker, wanted) = (job.clone(), routed.clone());
    let request_id = request_id();
    let climb = move || {
        REQUEST_ID.sync_scope(request_id, || {
            climb_down(
                routed.as_deref(),
                last_good.as_deref(),
                &on_worker,
                deadline,
                budget,
            )
        })
    };
    match pool.run(budget, climb).await {
        Ok(ranked) => ranked,
        // No worker came free within the whole budget. The native copy takes less than a millisecond,
        // so the reactor can bear it; the viewer cannot bear an error.
        Err(busy) => {
            tracing::warn!(%busy, "ranking natively");
            if let Some(wanted) = wanted {
                let failure = PolicyFailure::new(Stage::Dedup, FailureKind::Pool, busy.to_string());
                wanted.observe_unrun(&failure);
            }
            rank_native(&job)
        }
    }
}

fn climb_down(
    routed: Option<&LoadedPolicy>,
    last_good: Option<&LoadedPolicy>,
    job: &Job,
    deadline: Instant,
    budget: Duration,
) -> Option<Ranked> {
    let rungs = [(routed, ServedBy::Policy), (last_good, ServedBy::LastGood)];
    for (policy, served_by) in rungs
        .into_iter()
        .filter_map(|(policy, served_by)| Some((policy?, served_by)))
    {
        let left = deadline.saturating_duration_since(Instant::now());
        match rank_counted(policy, left, budget, job) {
            Ok(ranking) => {
                return Some(Ranked {
                    ranking,
                    policy: ServedPolicy::of(policy),
                    served_by,
                });
            }
            Err(failure) => tracing::warn!(
                policy = %policy.spec.policy,
                stage = %failure.stage,
                kind = failure.kind.as_str(),
                detail = failure.detail,
                "policy failed"
            ),
        }
    }
    rank_native(job)
}

/// One call of a policy, with what it says of the policy's failure budget. A policy answers for its own deadline, or for
/// the `budget` of a whole request where that is shorter; not for what a rung before it left of that.
fn rank_counted(
    policy: &LoadedPolicy,
    left: Duration,
    budget: Duration,
    job: &Job,
) -> Result<Ranking, PolicyFailure> {
    let (begun, cpu) = (Instant::now(), ThreadTime::try_now());
    let ranked = rank(&policy.running(policy.budget(left)), job.input());
    let cpu = cpu.and_then(|cpu| cpu.try_elapsed());
    let failure = ranked.as_ref().err().map(|failure| failure.kind);
    let took = cpu.unwrap_or_else(|_| begun.elapsed());
    if !job.set.is_empty()
        && let Some(call) = Call::of(failure, took, policy.deadline().min(budget))
    {
        policy.outcomes.record(begun, call);
    }
    ranked
}

fn rank_native(job: &Job) -> Option<Ranked> {
    match guarded(AssertUnwindSafe(|| rank(Native::get(), job.input()))) {
        Ok(ranking) => Some(Ranked {
            ranking,
            policy: ServedPolicy::native(Algo::Ch),
            served_by: ServedBy::Native,
        }),
        Err(failure) => {
            tracing::error!(%failure, "the native ranker failed");
            None
        }
    }
}
