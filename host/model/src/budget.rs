//! Error budgets of policies: the number of failures after which a policy is taken out of
//! service, and the latency limit relative to the active policy. All functions are pure; time is
//! passed in.
//!
//! The counts are exact and cover a window; there is no decaying average. An average that decays
//! per call forgets slowly if calls are rare. An average that decays with time remembers a burst
//! until the next call. A person can check neither. "13 of 204 calls in 30 s" can be checked,
//! and the audit log contains exactly that. The resolution is one second, so a window of 30
//! slots is off by at most 3 %.
//!
//! Latency is the processor time of the thread that ran the policy, not wall-clock time. A
//! policy only computes, so the two are equal on an idle host. On a busy host the difference
//! comes from the host's lack of processors, which must not take a good policy out of service.
//!
//! A budget counts distinct viewers besides calls, because viewers without a fresh feed reload and
//! every reload is a new failed call. A few viewers whose candidates a policy cannot rank are a
//! reason to look at the policy and none to take it from every other viewer.

use super::failure::FailureKind;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub const WINDOW_MAX_S: u64 = 600;

/// Upper limit of [`Thresholds::min_viewers`]. A second of a window keeps at most this many ids of
/// viewers, which is enough to compare their number with any allowed threshold.
pub const MIN_VIEWERS_MAX: u32 = 50;

/// Limits at which a budget is spent. The defaults are in `FailureBudget` in the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    pub min_failures: u32,
    /// Number of distinct viewers whose calls must have failed, at most [`MIN_VIEWERS_MAX`].
    pub min_viewers: u32,
    pub ratio: f64,
    pub window_s: u64,
    /// Allowed ratio of the policy's p99 to the active policy's p99. 0 switches the latency
    /// check off.
    pub p99_factor: f64,
    pub p99_min_calls: u32,
}

/// One call: the three stages of one ranking.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub viewer: u64,
    pub failure: Option<FailureKind>,
    pub cpu: Duration,
}

/// The time that a call had.
#[derive(Debug, Clone, Copy)]
pub struct Granted {
    /// Deadline that the policy declares.
    pub deadline: Duration,
    /// Time that the host had left for the call. It may be shorter than the deadline.
    pub left: Duration,
}

/// Share of its deadline for which a policy must have had the processor, so that a missed deadline
/// is its own. It is not 1, because the deadline ends a call up to one tick of a millisecond early
/// and an interrupt takes some microseconds of each millisecond.
const OWN_SHARE: f64 = 0.9;

impl Granted {
    /// Reports if a call that used `cpu` had the processor for the whole deadline.
    fn was_whole(&self, cpu: Duration) -> bool {
        self.left >= self.deadline && cpu >= self.deadline.mul_f64(OWN_SHARE)
    }
}

impl Call {
    /// Returns the call if the policy is responsible for its result. Returns `None` if the host
    /// caused the failure: it had no free worker or instance, it cut the time below the policy's
    /// own deadline, or it did not give the policy the processor for the whole deadline.
    pub fn from_outcome(
        viewer: u64,
        failure: Option<FailureKind>,
        cpu: Duration,
        granted: Granted,
    ) -> Option<Self> {
        match failure {
            Some(FailureKind::Pool | FailureKind::CpuShare) => None,
            Some(FailureKind::Deadline) if !granted.was_whole(cpu) => None,
            _ => Some(Self {
                viewer,
                failure,
                cpu,
            }),
        }
    }
}

/// Ids of distinct viewers, at most [`MIN_VIEWERS_MAX`] and in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Viewers(Vec<u64>);

impl Viewers {
    fn add(&mut self, viewer: u64) {
        if self.0.len() < MIN_VIEWERS_MAX as usize
            && let Err(at) = self.0.binary_search(&viewer)
        {
            self.0.insert(at, viewer);
        }
    }
}

/// Number of bits of a [`ViewerCount`]. The estimate is within a few percent up to about three times
/// as many viewers, and it ends at seven times as many.
const VIEWER_BITS: usize = 1_024;

/// An estimate of the number of distinct viewers in constant memory ("linear counting"): every
/// viewer sets one bit, and the share of bits that are clear tells their number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ViewerCount([u64; VIEWER_BITS / 64]);

impl ViewerCount {
    fn add(&mut self, viewer: u64) {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(viewer);
        let bit = hasher.finish() as usize % VIEWER_BITS;
        self.0[bit / 64] |= 1 << (bit % 64);
    }

    fn merge(&mut self, other: &Self) {
        let words = self.0.iter_mut().zip(other.0);
        words.for_each(|(word, more)| *word |= more);
    }

    fn estimate(&self) -> f64 {
        let clear: u32 = self.0.iter().map(|word| word.count_zeros()).sum();
        let bits = VIEWER_BITS as f64;
        -bits * (f64::from(clear.max(1)) / bits).ln()
    }
}

/// Number of latency slots. There are four per octave from 8 µs to 8.4 s, so a quantile is at
/// most 19 % too high.
const LATENCY_SLOTS: usize = 82;
const LATENCY_LEAST_S: f64 = 8e-6;
const LATENCY_PER_OCTAVE: f64 = 4.0;

fn latency_slot(took: Duration) -> usize {
    let octaves = (took.as_secs_f64() / LATENCY_LEAST_S).log2();
    ((octaves * LATENCY_PER_OCTAVE).ceil().max(0.0) as usize).min(LATENCY_SLOTS - 1)
}

fn latency_bound(slot: usize) -> Duration {
    Duration::from_secs_f64(LATENCY_LEAST_S * (slot as f64 / LATENCY_PER_OCTAVE).exp2())
}

/// Number of calls in a period, with their failures and latencies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    pub calls: u32,
    failures: [u32; FailureKind::ALL.len()],
    failing_viewers: Viewers,
    viewers: ViewerCount,
    latency: [u32; LATENCY_SLOTS],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            calls: 0,
            failures: [0; FailureKind::ALL.len()],
            failing_viewers: Viewers::default(),
            viewers: ViewerCount([0; VIEWER_BITS / 64]),
            latency: [0; LATENCY_SLOTS],
        }
    }
}

impl Counts {
    fn add(&mut self, call: Call) {
        self.calls += 1;
        self.viewers.add(call.viewer);
        self.latency[latency_slot(call.cpu)] += 1;
        if let Some(kind) = call.failure {
            self.failures[kind as usize] += 1;
            self.failing_viewers.add(call.viewer);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.calls += other.calls;
        let failures = self.failures.iter_mut().zip(other.failures);
        let latency = self.latency.iter_mut().zip(other.latency);
        failures.chain(latency).for_each(|(sum, more)| *sum += more);
        let viewers = other.failing_viewers.0.iter();
        viewers.for_each(|viewer| self.failing_viewers.add(*viewer));
        self.viewers.merge(&other.viewers);
    }

    pub fn failed(&self) -> u32 {
        self.failures.iter().sum()
    }

    /// Returns the number of distinct viewers whose calls failed, at most [`MIN_VIEWERS_MAX`].
    pub fn failing_viewers(&self) -> u32 {
        self.failing_viewers.0.len() as u32
    }

    /// Returns the kinds of failure that occurred, with their counts.
    pub fn failures(&self) -> impl Iterator<Item = (FailureKind, u32)> {
        let counted = FailureKind::ALL.into_iter().zip(self.failures);
        counted.filter(|(_, count)| *count > 0)
    }

    /// Returns the smallest time that at least this share of the calls did not exceed, or `None`
    /// if there were no calls.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (f64::from(self.calls) * share).ceil().max(1.0) as u32;
        let mut sum = 0;
        let reached = |count: &u32| {
            sum += count;
            sum >= wanted
        };
        self.latency.iter().position(reached).map(latency_bound)
    }

    /// Number of failures that spends the budget, at the current number of calls.
    pub fn failures_allowed(&self, thresholds: &Thresholds) -> u32 {
        let by_ratio = (f64::from(self.calls) * thresholds.ratio).ceil() as u32;
        by_ratio.max(thresholds.min_failures)
    }

    /// Number of failing viewers that spends the budget: the same share of the viewers as of the
    /// calls, but no more than a second of the window remembers.
    fn viewers_allowed(&self, thresholds: &Thresholds) -> u32 {
        // A tenth of a viewer is within the error of the estimate.
        let by_ratio = (self.viewers.estimate() * thresholds.ratio - 0.1).ceil() as u32;
        by_ratio.min(MIN_VIEWERS_MAX).max(thresholds.min_viewers)
    }

    /// Returns the reason to take the policy out of service if it failed too often and for
    /// enough viewers.
    pub fn failed_too_often(&self, thresholds: &Thresholds) -> Option<String> {
        let (failed, viewers) = (self.failed(), self.failing_viewers());
        if failed < self.failures_allowed(thresholds) || viewers < self.viewers_allowed(thresholds)
        {
            return None;
        }
        let kinds: Vec<String> = self
            .failures()
            .map(|(kind, count)| format!("{} {count}", kind.as_str()))
            .collect();
        Some(format!(
            "{failed} of {} calls in {} s failed, for {} viewers: {}",
            self.calls,
            thresholds.window_s,
            self.viewers_text(),
            kinds.join(", ")
        ))
    }

    fn viewers_text(&self) -> String {
        match self.failing_viewers() {
            MIN_VIEWERS_MAX => format!("at least {MIN_VIEWERS_MAX}"),
            viewers => viewers.to_string(),
        }
    }

    /// Returns the reason to take the policy out of service if it is too slow compared with the active
    /// policy, whose counts are `active`.
    ///
    /// The active policy itself is not checked in this way. The policy before it runs only if
    /// the active one fails, which is no fair sample. A comparison with its own past would react
    /// to a larger community or to longer lists of candidates. The active policy's limit is its
    /// deadline, and missed deadlines are counted as failures.
    pub fn slower_than(
        &self,
        active: &Counts,
        deadline: Duration,
        thresholds: &Thresholds,
    ) -> Option<String> {
        let enough = self.calls.min(active.calls) >= thresholds.p99_min_calls.max(1);
        if !enough || thresholds.p99_factor <= 0.0 {
            return None;
        }
        let (own, other) = (self.quantile(0.99)?, active.quantile(0.99)?);
        // A policy in another language may take thirty times as long as one in Rust and still be
        // welcome, because its declared limit is its deadline. So the factor counts only if the
        // policy uses more than a quarter of its deadline.
        let slow = own > other.mul_f64(thresholds.p99_factor) && own > deadline / 4;
        slow.then(|| {
            format!(
                "p99 {:.1} ms against {:.1} ms of the active policy, over {} and {} calls in {} s",
                own.as_secs_f64() * 1e3,
                other.as_secs_f64() * 1e3,
                self.calls,
                active.calls,
                thresholds.window_s
            )
        })
    }
}

/// Recent calls of one policy, by second.
#[derive(Debug, Default)]
pub struct Window {
    seconds: VecDeque<(u64, Counts)>,
}

impl Window {
    pub fn record(&mut self, now_s: u64, call: Call) {
        if self
            .seconds
            .back()
            .is_none_or(|(second, _)| *second < now_s)
        {
            self.seconds.push_back((now_s, Counts::default()));
        }
        if let Some((_, counts)) = self.seconds.back_mut() {
            counts.add(call);
        }
        let over = |second: &u64| second + WINDOW_MAX_S <= now_s;
        while self.seconds.front().is_some_and(|(second, _)| over(second)) {
            self.seconds.pop_front();
        }
    }

    /// Returns the calls of the last `window_s` seconds, including the current second.
    pub fn counts(&self, now_s: u64, window_s: u64) -> Counts {
        let mut sum = Counts::default();
        let recent = self.seconds.iter().rev();
        for (_, counts) in recent.take_while(|(second, _)| second + window_s > now_s) {
            sum.merge(counts);
        }
        sum
    }
}

/// Call window of one effective digest. Workers write to it, and the host reads it.
#[derive(Debug)]
pub struct Outcomes {
    began: Instant,
    window: Mutex<Window>,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            window: Mutex::default(),
        }
    }
}

impl Outcomes {
    pub fn record(&self, now: Instant, call: Call) {
        let second = self.second(now);
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.record(second, call);
    }

    pub fn counts(&self, now: Instant, window_s: u64) -> Counts {
        let window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.counts(self.second(now), window_s)
    }

    /// Forgets all calls, so that a policy which returns to service starts anew.
    pub fn clear(&self) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        *window = Window::default();
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const THRESHOLDS: Thresholds = Thresholds {
        min_failures: 5,
        min_viewers: 3,
        ratio: 0.05,
        window_s: 30,
        p99_factor: 3.0,
        p99_min_calls: 200,
    };
    const OK: Call = Call {
        viewer: 1,
        failure: None,
        cpu: Duration::from_micros(300),
    };
    const TRAP: Call = Call {
        viewer: 1,
        failure: Some(FailureKind::Trap),
        cpu: Duration::from_micros(10),
    };

    /// Counts calls, each of another viewer.
    fn counts(calls: &[(Call, u32)]) -> Counts {
        let mut counts = Counts::default();
        for (call, times) in calls {
            (0..*times).for_each(|viewer| counts.add(of(viewer.into(), *call)));
        }
        counts
    }

    fn of(viewer: u64, call: Call) -> Call {
        Call { viewer, ..call }
    }

    #[test]
    fn a_policy_that_traps_after_a_thousand_good_calls_spends_its_budget_within_two_seconds() {
        for rate in [4, 40, 400] {
            let mut window = Window::default();
            let good_s = 1_000_u64.div_ceil(rate);
            for call in 0..good_s * rate {
                window.record(call / rate, OK);
            }
            let spent_after = (0..10 * rate).position(|call| {
                let now = good_s + call / rate;
                window.record(now, of(call, TRAP));
                let counts = window.counts(now, THRESHOLDS.window_s);
                counts.failed_too_often(&THRESHOLDS).is_some()
            });
            let calls = spent_after.unwrap() as u64;
            assert!(calls <= 2 * rate, "{calls} calls at {rate}/s");
        }
    }

    #[test]
    fn few_failures_or_a_low_share_of_failures_do_not_spend_the_budget() {
        let spent = |calls: &[(Call, u32)]| counts(calls).failed_too_often(&THRESHOLDS);
        assert_eq!(spent(&[(TRAP, 4)]), None);
        assert_eq!(
            spent(&[(TRAP, 5)]).unwrap(),
            "5 of 5 calls in 30 s failed, for 5 viewers: trap 5"
        );
        assert_eq!(spent(&[(TRAP, 40), (OK, 960)]), None);
        assert!(spent(&[(TRAP, 50), (OK, 950)]).is_some());
    }

    #[test]
    fn viewers_who_reload_do_not_spend_the_budget_until_enough_of_them_fail() {
        let mut window = Window::default();
        for reload in 0..1_000 {
            window.record(reload / 100, of(7, TRAP));
            window.record(reload / 100, of(8, TRAP));
        }
        let spent = |window: &Window| window.counts(10, 30).failed_too_often(&THRESHOLDS);
        assert_eq!(spent(&window), None);
        window.record(10, of(9, TRAP));
        assert_eq!(
            spent(&window).unwrap(),
            "2001 of 2001 calls in 30 s failed, for 3 viewers: trap 2001"
        );
    }

    #[test]
    fn a_few_viewers_who_reload_among_many_do_not_spend_the_budget() {
        let mut counts = Counts::default();
        (0..300).for_each(|viewer| counts.add(of(viewer, OK)));
        for _ in 0..20 {
            (300..304).for_each(|viewer| counts.add(of(viewer, TRAP)));
        }
        assert!(counts.failed() >= counts.failures_allowed(&THRESHOLDS));
        assert_eq!(counts.failed_too_often(&THRESHOLDS), None);
        (304..320).for_each(|viewer| counts.add(of(viewer, TRAP)));
        assert!(counts.failed_too_often(&THRESHOLDS).is_some());
    }

    #[test]
    fn the_number_of_viewers_is_estimated_within_a_tenth() {
        let mut count = Counts::default().viewers;
        for viewers in 1..=3_000_u64 {
            count.add(viewers * 7_919);
            count.add(viewers * 7_919);
            let (estimate, exact) = (count.estimate(), viewers as f64);
            let tolerance = (exact * 0.1).max(2.0);
            assert!(
                (estimate - exact).abs() <= tolerance,
                "{estimate} of {exact}"
            );
        }
        (0..100_000).for_each(|viewer| count.add(viewer));
        assert!(count.estimate() > 7_000.0 && count.estimate().is_finite());
    }

    #[test]
    fn a_second_remembers_a_bounded_number_of_viewers_and_says_so() {
        let counts = counts(&[(TRAP, 10_000)]);
        assert_eq!(counts.failing_viewers(), MIN_VIEWERS_MAX);
        let reason = counts.failed_too_often(&THRESHOLDS).unwrap();
        assert!(reason.contains("for at least 50 viewers"), "{reason}");
    }

    #[test]
    fn time_that_the_host_did_not_grant_does_not_count_against_the_policy() {
        let (short, whole) = (Duration::from_millis(3), Duration::from_millis(20));
        let call = |kind, cpu, left| {
            let granted = Granted {
                deadline: whole,
                left,
            };
            Call::from_outcome(1, Some(kind), cpu, granted)
        };
        assert!(call(FailureKind::Pool, short, whole).is_none());
        for throttled in [short, Duration::from_millis(11), Duration::from_millis(17)] {
            assert!(call(FailureKind::Deadline, throttled, whole).is_none());
        }
        assert!(
            call(FailureKind::Deadline, short, short).is_none(),
            "the host cut the deadline"
        );
        assert!(
            call(FailureKind::Deadline, Duration::ZERO, Duration::ZERO).is_none(),
            "the host granted nothing"
        );
        assert!(call(FailureKind::Deadline, whole, whole).is_some());
        assert!(call(FailureKind::Trap, short, short).is_some());
    }

    #[test]
    fn counts_that_were_cleared_start_anew() {
        let (outcomes, now) = (Outcomes::default(), Instant::now());
        outcomes.record(now, TRAP);
        outcomes.clear();
        assert_eq!(outcomes.counts(now, 30), Counts::default());
    }

    #[test]
    fn a_policy_is_too_slow_only_with_enough_calls_a_clear_factor_and_a_part_of_its_deadline() {
        let took = |ms: f64| Call {
            viewer: 1,
            failure: None,
            cpu: Duration::from_secs_f64(ms / 1e3),
        };
        let deadline = Duration::from_millis(20);
        let active = counts(&[(OK, 1_000)]);
        let slow = |calls: &[(Call, u32)]| {
            let counts = counts(calls);
            counts.slower_than(&active, deadline, &THRESHOLDS).is_some()
        };
        assert!(slow(&[(OK, 900), (took(9.0), 100)]));
        assert!(!slow(&[(OK, 995), (took(9.0), 5)]), "less than 1 %");
        assert!(!slow(&[(took(9.0), 199)]), "too few");
        assert!(!slow(&[(took(3.0), 1_000)]), "far from its deadline");
        let off = Thresholds {
            p99_factor: 0.0,
            ..THRESHOLDS
        };
        let counts = counts(&[(took(9.0), 1_000)]);
        assert_eq!(counts.slower_than(&active, deadline, &off), None);
    }

    fn calls() -> impl Strategy<Value = Vec<(u64, Option<u64>, u64)>> {
        let failing = proptest::option::of(0..80u64);
        proptest::collection::vec((0..4u64, failing, 1..50_000u64), 1..300)
    }

    proptest! {
        #[test]
        fn a_window_gives_the_same_counts_as_a_list_of_all_calls(calls in calls(), window_s in 1..60u64) {
            let mut window = Window::default();
            let mut all = Vec::new();
            let mut now = 0;
            for (pause, fails, micros) in calls {
                now += pause;
                let call = Call {
                    viewer: fails.unwrap_or_default(),
                    failure: fails.map(|_| FailureKind::Memory),
                    cpu: Duration::from_micros(micros),
                };
                window.record(now, call);
                all.push((now, call));
            }
            let recent: Vec<Call> = all
                .iter()
                .filter(|(at, _)| at + window_s > now)
                .map(|(_, call)| *call)
                .collect();
            let counts = window.counts(now, window_s);
            prop_assert_eq!(counts.calls as usize, recent.len());
            let failed = recent.iter().filter(|call| call.failure.is_some()).count();
            prop_assert_eq!(counts.failed() as usize, failed);
            let viewers = recent.iter().filter(|call| call.failure.is_some());
            let viewers: BTreeSet<u64> = viewers.map(|call| call.viewer).collect();
            let viewers = viewers.len().min(MIN_VIEWERS_MAX as usize);
            prop_assert_eq!(counts.failing_viewers() as usize, viewers);
            let mut times: Vec<f64> = recent.iter().map(|call| call.cpu.as_secs_f64()).collect();
            times.sort_by(f64::total_cmp);
            for share in [0.5, 0.99] {
                let exact = times[((times.len() as f64 * share).ceil() as usize).max(1) - 1];
                let found = counts.quantile(share).unwrap().as_secs_f64();
                prop_assert!(exact <= found * 1.000_001 && found <= (exact * 1.2).max(8e-6), "{exact} {found}");
            }
        }
    }
}
