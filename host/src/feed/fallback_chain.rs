//! The ranking steps of the fallback chain: the routed policy, then the last good one, then the
//! native ranker. The order is pure and fixed before the first step. All steps run on one
//! worker, so that a failure does not wait for a worker a second time.

use super::ranked_feed::served_policy;
use crate::request_id::{REQUEST_ID, request_id};
use cpu_time::ThreadTime;
use nova_control::deploy::Serving;
use nova_model::artifact::Stage;
use nova_model::budget::Call;
use nova_model::failure::{FailureKind, PolicyFailure};
use nova_model::features::CandidateSet;
use nova_model::snapshot::{Algo, ServedBy, ServedPolicy};
use nova_policy::loaded::LoadedPolicy;
use nova_policy::native::{Native, guarded};
use nova_policy::pool::CpuPool;
use nova_policy::ranking::{RankInput, Ranking, rank};
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

/// Input of a ranking. It owns its data because it is sent to another thread.
#[derive(Debug, Clone)]
pub struct RankingTask {
    pub request: Request,
    pub set: Arc<CandidateSet>,
    pub seen: Vec<bool>,
}

impl RankingTask {
    pub fn input(&self) -> RankInput<'_> {
        RankInput {
            request: &self.request,
            set: &self.set,
            seen: &self.seen,
        }
    }
}

/// Returns the policy to try if `routed` fails: the active policy or, if that is the one that
/// failed, the policy that was active before it.
pub fn last_good(routed: Option<&LoadedPolicy>, serving: &Serving) -> Option<Arc<LoadedPolicy>> {
    let routed = routed.map(|policy| policy.effective_digest);
    serving
        .active_in_service()
        .into_iter()
        .chain(&serving.warm)
        .find(|policy| Some(policy.effective_digest) != routed)
        .cloned()
}

/// Ranks on a worker, within `budget`. Uses the native ranker if no policy is in service.
/// Returns `None` only if the native ranker failed too.
pub async fn rank_in_order(
    pool: &CpuPool,
    routed: Option<Arc<LoadedPolicy>>,
    last_good: Option<Arc<LoadedPolicy>>,
    task: RankingTask,
    budget: Duration,
) -> Option<Ranked> {
    let deadline = Instant::now() + budget;
    let (on_worker, wanted) = (task.clone(), routed.clone());
    let request_id = request_id();
    let steps_on_worker = move || {
        REQUEST_ID.sync_scope(request_id, || {
            try_in_order(
                routed.as_deref(),
                last_good.as_deref(),
                &on_worker,
                deadline,
                budget,
            )
        })
    };
    match pool.run(budget, steps_on_worker).await {
        Ok(ranked) => ranked,
        // No worker became free within the whole budget. The native ranker takes less than a
        // millisecond, so it may run on the async runtime's thread; the alternative is an error
        // to the viewer.
        Err(busy) => {
            tracing::warn!(%busy, "no worker was free to run the policy; using the native ranker");
            if let Some(wanted) = wanted {
                let failure = PolicyFailure::new(Stage::Dedup, FailureKind::Pool, busy.to_string());
                wanted.observe_unrun(&failure);
            }
            rank_native(&task)
        }
    }
}

fn try_in_order(
    routed: Option<&LoadedPolicy>,
    last_good: Option<&LoadedPolicy>,
    task: &RankingTask,
    deadline: Instant,
    budget: Duration,
) -> Option<Ranked> {
    let steps = [(routed, ServedBy::Policy), (last_good, ServedBy::LastGood)];
    for (policy, served_by) in steps
        .into_iter()
        .filter_map(|(policy, served_by)| Some((policy?, served_by)))
    {
        let left = deadline.saturating_duration_since(Instant::now());
        match rank_counted(policy, left, budget, task) {
            Ok(ranking) => {
                return Some(Ranked {
                    ranking,
                    policy: served_policy(policy),
                    served_by,
                });
            }
            Err(failure) => tracing::warn!(
                policy = %policy.spec.policy,
                stage = %failure.stage,
                kind = failure.kind.as_str(),
                detail = failure.detail,
                "the policy failed; trying the next step of the fallback chain"
            ),
        }
    }
    rank_native(task)
}

/// Runs a policy once and records the outcome in its error budget. A policy is held to its own
/// deadline, or to the `budget` of the whole request if that is shorter. The time that an
/// earlier step has used does not count against it.
fn rank_counted(
    policy: &LoadedPolicy,
    left: Duration,
    budget: Duration,
    task: &RankingTask,
) -> Result<Ranking, PolicyFailure> {
    let (begun, cpu) = (Instant::now(), ThreadTime::try_now());
    let ranked = rank(&policy.running(policy.budget(left)), task.input());
    let cpu = cpu.and_then(|cpu| cpu.try_elapsed());
    let failure = ranked.as_ref().err().map(|failure| failure.kind);
    let took = cpu.unwrap_or_else(|_| begun.elapsed());
    if !task.set.is_empty()
        && let Some(call) = Call::from_outcome(failure, took, policy.deadline().min(budget))
    {
        policy.outcomes.record(begun, call);
    }
    ranked
}

fn rank_native(task: &RankingTask) -> Option<Ranked> {
    match guarded(AssertUnwindSafe(|| rank(Native::get(), task.input()))) {
        Ok(ranking) => Some(Ranked {
            ranking,
            policy: ServedPolicy::native(Algo::Ranked),
            served_by: ServedBy::Native,
        }),
        Err(failure) => {
            tracing::error!(%failure, "the native ranker failed; trying a snapshot or the timeline");
            None
        }
    }
}
