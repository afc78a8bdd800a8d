//! The ranking steps of the fallback chain: the routed policy, then the last good one, then the
//! native ranker. The order is pure and fixed before the first step. All steps run on one
//! worker, so that a failure does not wait for a worker a second time. Only if a policy that is
//! not active gets no worker, the rest of the chain runs on a worker of the active policy.

use super::failures::SharedFailureLog;
use super::ranked_feed::served_policy;
use crate::request_id::{REQUEST_ID, request_id};
use cpu_time::ThreadTime;
use nova_control::deploy::Serving;
use nova_model::artifact::Stage;
use nova_model::budget::{Call, Granted};
use nova_model::failure::PolicyFailure;
use nova_model::features::CandidateSet;
use nova_model::snapshot::{Algo, ServedBy, ServedPolicy};
use nova_policy::loaded::LoadedPolicy;
use nova_policy::memory::Claim;
use nova_policy::module::CallBudget;
use nova_policy::native::{Native, guarded};
use nova_policy::pool::{CpuPool, Lane, Refused, Wait};
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
fn last_good(routed: Option<&LoadedPolicy>, serving: &Serving) -> Option<Arc<LoadedPolicy>> {
    let routed = routed.map(|policy| policy.effective_digest);
    serving
        .active_in_service()
        .into_iter()
        .chain(&serving.warm)
        .find(|policy| Some(policy.effective_digest) != routed)
        .cloned()
}

/// The policies to try, in this order. The native ranker follows.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    pub routed: Option<Arc<LoadedPolicy>>,
    pub last_good: Option<Arc<LoadedPolicy>>,
    pub lane: ChainLane,
    pub failures: Arc<SharedFailureLog>,
}

/// The workers that a chain may use at first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChainLane {
    #[default]
    Active,
    /// Those of the routed policy, which is not active.
    Routed,
}

impl Chain {
    pub fn new(
        routed: Option<Arc<LoadedPolicy>>,
        serving: &Serving,
        failures: Arc<SharedFailureLog>,
    ) -> Self {
        let is_active =
            |policy: &Arc<LoadedPolicy>| policy.effective_digest == serving.active.effective_digest;
        Self {
            last_good: last_good(routed.as_deref(), serving),
            lane: match &routed {
                Some(policy) if !is_active(policy) => ChainLane::Routed,
                _ => ChainLane::Active,
            },
            routed,
            failures,
        }
    }

    fn lane(&self) -> Lane {
        match (&self.routed, self.lane) {
            (Some(policy), ChainLane::Routed) => Lane::Policy(policy.effective_digest),
            _ => Lane::Active,
        }
    }

    /// Counts the call of the routed policy that was refused, and returns the rest of the chain.
    fn without_routed(self, refused: Refused) -> Self {
        if let Some(routed) = &self.routed {
            let failure = PolicyFailure::new(Stage::Dedup, refused.kind(), refused.to_string());
            routed.observe_unrun(&failure);
            self.failures.record(&routed.spec.policy, &failure);
            tracing::debug!(policy = %routed.spec.policy, %refused, "the policy got no worker; trying the next step of the fallback chain");
        }
        Self {
            routed: None,
            lane: ChainLane::Active,
            ..self
        }
    }
}

/// Ranks on a worker, within `budget`. Uses the native ranker if no policy is in service.
/// Returns `None` only if the native ranker failed too.
pub async fn rank_in_order(
    pool: &CpuPool,
    chain: Chain,
    task: RankingTask,
    budget: Duration,
) -> Option<Ranked> {
    let deadline = Instant::now() + budget;
    let lane = chain.lane();
    let wait = match lane {
        Lane::Active => Wait::of(budget),
        // A quarter of the time, so that the active policy can answer in its place.
        _ => Wait {
            start: budget / 4,
            done: budget,
        },
    };
    let refused = match on_worker(pool, lane, wait, &chain, &task, deadline).await {
        Ok(ranked) => return ranked,
        Err(refused) => refused,
    };
    let rest = chain.without_routed(refused);
    let left = deadline.saturating_duration_since(Instant::now());
    if lane != Lane::Active && !left.is_zero() {
        let wait = Wait::of(left);
        match on_worker(pool, Lane::Active, wait, &rest, &task, deadline).await {
            Ok(ranked) => return ranked,
            Err(refused) => drop(
                Chain {
                    routed: rest.last_good.clone(),
                    ..rest
                }
                .without_routed(refused),
            ),
        }
    }
    // No worker became free within the whole budget. The native ranker takes less than a
    // millisecond, so it may run on the async runtime's thread; the alternative is an error to
    // the viewer.
    tracing::warn!(%refused, "no worker was free to run the policy; using the native ranker");
    rank_native(&task)
}

/// Runs the steps of a chain on a worker. `deadline` is the end of the request's budget.
async fn on_worker(
    pool: &CpuPool,
    lane: Lane,
    wait: Wait,
    chain: &Chain,
    task: &RankingTask,
    deadline: Instant,
) -> Result<Option<Ranked>, Refused> {
    let (chain, task) = (chain.clone(), task.clone());
    let request_id = request_id();
    let steps = move || REQUEST_ID.sync_scope(request_id, || try_in_order(&chain, &task, deadline));
    pool.run(lane, wait, steps).await
}

fn try_in_order(chain: &Chain, task: &RankingTask, deadline: Instant) -> Option<Ranked> {
    let claim_of_routed = match chain.lane {
        ChainLane::Active => Claim::Active,
        ChainLane::Routed => Claim::Other,
    };
    let steps = [
        (&chain.routed, ServedBy::Policy, claim_of_routed),
        (&chain.last_good, ServedBy::LastGood, Claim::Active),
    ];
    let steps = steps
        .into_iter()
        .filter_map(|(policy, served_by, claim)| Some((policy.as_deref()?, served_by, claim)));
    for (step, (policy, served_by, claim)) in steps.enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        // Only the first step is judged. A request that one policy failed is no fair sample for
        // the next: the two may share the module that cannot rank these candidates, and the
        // first one used up time.
        match run(policy, claim, left, task, step == 0) {
            Ok(ranking) => {
                return Some(Ranked {
                    ranking,
                    policy: served_policy(policy),
                    served_by,
                });
            }
            Err(failure) => {
                chain.failures.record(&policy.spec.policy, &failure);
                tracing::warn!(
                    policy = %policy.spec.policy,
                    stage = %failure.stage,
                    kind = failure.kind.as_str(),
                    detail = failure.detail,
                    "the policy failed; trying the next step of the fallback chain"
                );
            }
        }
    }
    rank_native(task)
}

/// Runs a policy once. If the run `is_judged`, records the outcome in the policy's error budget.
fn run(
    policy: &LoadedPolicy,
    claim: Claim,
    left: Duration,
    task: &RankingTask,
    is_judged: bool,
) -> Result<Ranking, PolicyFailure> {
    let (begun, cpu) = (Instant::now(), ThreadTime::try_now());
    let call_budget = CallBudget {
        claim,
        ..policy.budget(left)
    };
    let ranked = rank(&policy.running(call_budget), task.input());
    let cpu = cpu.and_then(|cpu| cpu.try_elapsed());
    let failure = ranked.as_ref().err().map(|failure| failure.kind);
    let took = cpu.unwrap_or_else(|_| begun.elapsed());
    let granted = Granted {
        deadline: policy.deadline(),
        left,
    };
    if is_judged
        && !task.set.is_empty()
        && let Some(call) = Call::from_outcome(task.request.user_id, failure, took, granted)
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
