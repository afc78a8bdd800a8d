//! The circuit breaker, as a pure state machine. Three failures in a row open it. After 30 s it
//! lets one probe through, and the probe's outcome decides if it closes again.
//!
//! It counts consecutive failures instead of a failure rate. A store that is down fails every
//! call, and a store that fails now and then is still worth calling, because each source has its
//! own deadline. Calls that were in progress together and fail together count as one failure,
//! because a short stall must not keep all requests away from the store for half a minute.

use nova_support::metrics::METRICS;
use prometheus::core::Collector as _;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Failures in a row that open the circuit.
pub const FAILURES_MAX: u32 = 3;
/// Time that the circuit stays open before a probe.
pub const OPEN: Duration = Duration::from_secs(30);
/// Pause before the next probe if the caller of the last one hung up.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Circuit {
    Closed,
    HalfOpen,
    Open,
}

impl Circuit {
    /// The value of the metric `circuit_state`.
    pub fn gauge(self) -> i64 {
        match self {
            Circuit::Closed => 0,
            Circuit::HalfOpen => 1,
            Circuit::Open => 2,
        }
    }

    pub fn from_gauge(value: i64) -> Option<Self> {
        [Circuit::Closed, Circuit::HalfOpen, Circuit::Open]
            .into_iter()
            .find(|circuit| circuit.gauge() == value)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Circuit::Closed => "closed",
            Circuit::HalfOpen => "half_open",
            Circuit::Open => "open",
        }
    }
}

/// Every circuit of this process, by the name of its store, as `circuit_state` shows it.
pub fn circuits() -> BTreeMap<String, Circuit> {
    let families = METRICS.circuit_state.collect();
    let gauges = families.iter().flat_map(|family| family.get_metric());
    let circuits = gauges.filter_map(|gauge| {
        let name = gauge.get_label().first()?.value().to_owned();
        let circuit = Circuit::from_gauge(gauge.get_gauge().get_value() as i64)?;
        Some((name, circuit))
    });
    circuits.collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
        /// Time at which the last failure was counted.
        last: Option<Instant>,
    },
    Open {
        since: Instant,
    },
    /// One probe call is in progress; all other calls are refused.
    Probing {
        since: Instant,
    },
}

const CLOSED: State = State::Closed {
    failures: 0,
    last: None,
};

#[derive(Debug, Clone)]
pub struct Breaker {
    state: State,
    open: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new(OPEN)
    }
}

impl Breaker {
    /// Returns a closed breaker with the same settings.
    pub fn renewed(&self) -> Self {
        Self::new(self.open)
    }

    pub fn new(open: Duration) -> Self {
        Self {
            state: CLOSED,
            open,
        }
    }

    /// Reports if a call may be made now. After `true`, the caller must report `succeeded`,
    /// `failed` or `abandoned`.
    pub fn admit(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            // If a probe's outcome is never reported, the probe counts as lost after
            // another `open` interval.
            State::Open { since } | State::Probing { since } => {
                let due = now.saturating_duration_since(since) >= self.open;
                if due {
                    self.state = State::Probing { since: now };
                }
                due
            }
        }
    }

    /// Closes the circuit. A call that began before the circuit opened closes it too, because its
    /// success proves that the store answers; the failure of such a call adds no information.
    pub fn succeeded(&mut self) {
        self.state = CLOSED;
    }

    /// Counts a failure of a call that was made at `began`.
    pub fn failed(&mut self, began: Instant, now: Instant) {
        match self.state {
            State::Closed { last, .. } if last.is_some_and(|last| began < last) => {}
            State::Closed { failures, .. } if failures + 1 < FAILURES_MAX => {
                self.state = State::Closed {
                    failures: failures + 1,
                    last: Some(now),
                };
            }
            State::Closed { .. } | State::Probing { .. } => {
                self.state = State::Open { since: now };
            }
            State::Open { .. } => {}
        }
    }

    /// Records that the caller gave up before the store could answer. That is no evidence either
    /// way, so a later caller probes again. The next probe waits for a pause, because otherwise
    /// every caller would call a store that is down for as long as all of them hang up.
    pub fn abandoned(&mut self, now: Instant) {
        if let State::Probing { .. } = self.state {
            let waited = self.open.saturating_sub(PROBE_PAUSE);
            let since = now.checked_sub(waited).unwrap_or(now);
            self.state = State::Open { since };
        }
    }

    pub fn circuit(&self) -> Circuit {
        match self.state {
            State::Closed { .. } => Circuit::Closed,
            State::Probing { .. } => Circuit::HalfOpen,
            State::Open { .. } => Circuit::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_open_the_circuit_and_a_success_resets_the_count() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.failed(now, now);
        breaker.failed(now, now);
        breaker.succeeded();
        breaker.failed(now, now);
        breaker.failed(now, now);
        assert_eq!(breaker.circuit(), Circuit::Closed);
        breaker.failed(now, now);
        assert_eq!(breaker.circuit(), Circuit::Open);
        assert!(!breaker.admit(now + OPEN - Duration::from_millis(1)));
    }

    #[test]
    fn calls_that_fail_together_count_as_one_failure() {
        let (mut breaker, began) = (Breaker::default(), Instant::now());
        let after = |ms| began + Duration::from_millis(ms);
        for ms in 50..60 {
            breaker.failed(began, after(ms));
        }
        assert_eq!(breaker.circuit(), Circuit::Closed);
        breaker.failed(after(70), after(120));
        breaker.failed(after(130), after(180));
        assert_eq!(breaker.circuit(), Circuit::Open);
    }

    #[test]
    fn an_open_circuit_admits_one_probe_whose_outcome_decides() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..3 {
            breaker.failed(now, now);
        }
        let later = now + OPEN;
        assert!(breaker.admit(later));
        assert!(!breaker.admit(later), "only one");
        breaker.failed(later, later);
        assert!(!breaker.admit(later + OPEN / 2));
        assert!(breaker.admit(later + OPEN));
        breaker.succeeded();
        assert_eq!(breaker.circuit(), Circuit::Closed);
        assert!(breaker.admit(later + OPEN));
    }

    #[test]
    fn an_abandoned_probe_is_repeated_after_a_pause() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..3 {
            breaker.failed(now, now);
        }
        let later = now + OPEN;
        assert!(breaker.admit(later));
        breaker.abandoned(later);
        assert!(!breaker.admit(later));
        assert!(breaker.admit(later + PROBE_PAUSE));
    }
}
