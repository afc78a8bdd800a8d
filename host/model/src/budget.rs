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
//! comes from the host's lack of processors, which must not quarantine a good policy on every
//! host.

use super::failure::FailureKind;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub const WINDOW_MAX_S: u64 = 600;

/// Limits at which a budget is spent. The defaults are in `FailureBudget` in the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    pub min_failures: u32,
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
    pub failure: Option<FailureKind>,
    pub cpu: Duration,
}

impl Call {
    /// Returns the call if the policy is responsible for its result. Returns `None` if the host
    /// caused the failure: it had no free worker or instance, or the policy had the processor
    /// for less than half of its deadline.
    pub fn from_outcome(
        failure: Option<FailureKind>,
        cpu: Duration,
        given: Duration,
    ) -> Option<Self> {
        match failure {
            Some(FailureKind::Pool | FailureKind::CpuShare) => None,
            Some(FailureKind::Deadline) if cpu < given / 2 => None,
            _ => Some(Self { failure, cpu }),
        }
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
    latency: [u32; LATENCY_SLOTS],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            calls: 0,
            failures: [0; FailureKind::ALL.len()],
            latency: [0; LATENCY_SLOTS],
        }
    }
}

impl Counts {
    fn add(&mut self, call: Call) {
        self.calls += 1;
        self.latency[latency_slot(call.cpu)] += 1;
        if let Some(kind) = call.failure {
            self.failures[kind as usize] += 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        self.calls += other.calls;
        let failures = self.failures.iter_mut().zip(other.failures);
        let latency = self.latency.iter_mut().zip(other.latency);
        failures.chain(latency).for_each(|(sum, more)| *sum += more);
    }

    pub fn failed(&self) -> u32 {
        self.failures.iter().sum()
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

    /// Returns the reason for a quarantine if the policy failed too often.
    pub fn failed_too_often(&self, thresholds: &Thresholds) -> Option<String> {
        let failed = self.failed();
        if failed < self.failures_allowed(thresholds) {
            return None;
        }
        let kinds: Vec<String> = self
            .failures()
            .map(|(kind, count)| format!("{} {count}", kind.as_str()))
            .collect();
        Some(format!(
            "{failed} of {} calls in {} s failed: {}",
            self.calls,
            thresholds.window_s,
            kinds.join(", ")
        ))
    }

    /// Returns the reason for a quarantine if the policy is too slow compared with the active
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

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THRESHOLDS: Thresholds = Thresholds {
        min_failures: 5,
        ratio: 0.05,
        window_s: 30,
        p99_factor: 3.0,
        p99_min_calls: 200,
    };
    const OK: Call = Call {
        failure: None,
        cpu: Duration::from_micros(300),
    };
    const TRAP: Call = Call {
        failure: Some(FailureKind::Trap),
        cpu: Duration::from_micros(10),
    };

    fn counts(calls: &[(Call, u32)]) -> Counts {
        let mut counts = Counts::default();
        for (call, times) in calls {
            (0..*times).for_each(|_| counts.add(*call));
        }
        counts
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
                window.record(now, TRAP);
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
            "5 of 5 calls in 30 s failed: trap 5"
        );
        assert_eq!(spent(&[(TRAP, 40), (OK, 960)]), None);
        assert!(spent(&[(TRAP, 50), (OK, 950)]).is_some());
    }

    #[test]
    fn a_failure_caused_by_a_busy_host_does_not_count_against_the_policy() {
        let (short, given) = (Duration::from_millis(3), Duration::from_millis(20));
        let call = |kind, cpu| Call::from_outcome(Some(kind), cpu, given);
        assert!(call(FailureKind::Pool, short).is_none());
        assert!(call(FailureKind::Deadline, short).is_none());
        assert!(call(FailureKind::Deadline, given).is_some());
        assert!(call(FailureKind::Trap, short).is_some());
    }

    #[test]
    fn a_policy_is_too_slow_only_with_enough_calls_a_clear_factor_and_a_part_of_its_deadline() {
        let took = |ms: f64| Call {
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

    fn calls() -> impl Strategy<Value = Vec<(u64, bool, u64)>> {
        proptest::collection::vec((0..4u64, any::<bool>(), 1..50_000u64), 1..300)
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
                    failure: fails.then_some(FailureKind::Memory),
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
