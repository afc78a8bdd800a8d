//! Statistics of one policy in shadow: its runs, and the differences between its rankings and
//! the served ones. Pure; time is passed in.

use chrono::{DateTime, Utc};
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::budget::{Call, Counts, Thresholds, Window};
use nova_model::time::UnixMs;
use nova_model::time::utc;
use nova_policy::compare::{Comparison, ComparisonSummary, Comparisons};
use nova_policy::loaded::LoadedPolicy;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Reports cover the runs of the last ten minutes; failures and times are kept per second.
const WINDOW_S: u64 = 600;
/// Comparisons cover at most this many of the latest rankings.
const COMPARISONS_MAX: usize = 2_000;

/// Report about a policy in shadow on this host.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ShadowReport {
    /// `name@version`.
    #[schema(value_type = String)]
    pub policy: PolicyRef,
    /// Effective digest of the policy.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Time at which this host began to run the policy. Null before its first run.
    pub since: Option<DateTime<Utc>>,
    /// Length in seconds of the window that `runs`, `ok`, `failures` and the times cover.
    pub window_s: u64,
    pub runs: u32,
    pub ok: u32,
    /// Number of failures by kind.
    pub failures: BTreeMap<&'static str, u32>,
    /// Processor time of one ranking, in milliseconds. Null if there are no runs.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Rankings that were served since then but not run in shadow, because the CPU share of
    /// shadow runs was used up.
    pub dropped: u64,
    /// Comparison with the served rankings, over the latest runs.
    pub comparison: ComparisonSummary,
    /// Set if the policy is no longer run because it spent its error budget. It stays in shadow
    /// and, as before, serves no viewer. To run it again, end its shadow state and put it into
    /// shadow again.
    pub stopped: Option<Stopped>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Stopped {
    pub at: DateTime<Utc>,
    pub reason: String,
}

#[derive(Debug)]
pub struct Watch {
    policy: PolicyRef,
    digest: Digest,
    since_ms: UnixMs,
    began: Instant,
    window: Window,
    comparisons: Comparisons,
    /// Number of rankings that had been dropped on this host before this watch began.
    dropped_before: u64,
    /// Runs that the host ended early.
    cut_short: u64,
    stopped: Option<Stopped>,
}

impl Watch {
    pub fn begin(policy: &LoadedPolicy, now: Instant, now_ms: UnixMs, dropped: u64) -> Self {
        Self {
            policy: policy.spec.policy.clone(),
            digest: policy.effective_digest,
            since_ms: now_ms,
            began: now,
            window: Window::default(),
            comparisons: Comparisons::latest(COMPARISONS_MAX),
            dropped_before: dropped,
            cut_short: 0,
            stopped: None,
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Counts a run that says nothing about the policy.
    pub fn dropped(&mut self) {
        self.cut_short += 1;
    }

    pub fn compared(&mut self, comparison: &Comparison) {
        self.comparisons.push(comparison);
    }

    /// Counts a run. Returns the reason to stop running the policy, once, when its error budget
    /// is spent.
    pub fn ran(
        &mut self,
        call: Call,
        thresholds: &Thresholds,
        now: Instant,
        now_ms: UnixMs,
    ) -> Option<String> {
        let second = self.second(now);
        self.window.record(second, call);
        if call.failure.is_none() || self.is_stopped() {
            return None;
        }
        let recent = self.window.counts(second, thresholds.window_s);
        let reason = recent.failed_too_often(thresholds)?;
        self.stopped = Some(Stopped {
            at: utc(now_ms),
            reason: reason.clone(),
        });
        Some(reason)
    }

    pub fn report(&self, now: Instant, dropped: u64) -> ShadowReport {
        let counts = self.window.counts(self.second(now), WINDOW_S);
        ShadowReport {
            since: Some(utc(self.since_ms)),
            dropped: dropped.saturating_sub(self.dropped_before) + self.cut_short,
            stopped: self.stopped.clone(),
            ..report(
                self.policy.clone(),
                self.digest,
                &counts,
                self.comparisons.summary(),
            )
        }
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }
}

/// Returns the report of a policy that has not run yet.
pub fn unrun(policy: &LoadedPolicy) -> ShadowReport {
    let summary = Comparisons::latest(COMPARISONS_MAX).summary();
    report(
        policy.spec.policy.clone(),
        policy.effective_digest,
        &Counts::default(),
        summary,
    )
}

fn report(
    policy: PolicyRef,
    digest: Digest,
    counts: &Counts,
    comparison: ComparisonSummary,
) -> ShadowReport {
    let ms = |share| counts.quantile(share).map(|took| took.as_secs_f64() * 1e3);
    let failures = counts.failures();
    ShadowReport {
        policy,
        digest,
        since: None,
        window_s: WINDOW_S,
        runs: counts.calls,
        ok: counts.calls - counts.failed(),
        failures: failures.map(|(kind, n)| (kind.as_str(), n)).collect(),
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        dropped: 0,
        comparison,
        stopped: None,
    }
}
