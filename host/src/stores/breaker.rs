//! A circuit breaker, as a pure state machine: three failures in a row open it, after 30 s one
//! probe goes through, and its outcome decides.
//!
//! Consecutive failures, not a rate: a store that is down fails every call, and one that fails
//! now and then is still worth asking, because each source has a deadline of its own. Calls that were under way
//! together and fail together are one failure: a stall of a moment must not send everybody elsewhere for half a minute.

use std::time::{Duration, Instant};

/// Failures in a row that open it.
pub const FAILURES_MAX: u32 = 3;
/// How long it stays open before a probe.
pub const OPEN: Duration = Duration::from_secs(30);
/// How long after a probe whose caller went away the next one is made.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Circuit {
    Closed,
    HalfOpen,
    Open,
}

impl Circuit {
    /// The value of `circuit_state`.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
        /// When the last of them was counted.
        last: Option<Instant>,
    },
    Open {
        since: Instant,
    },
    /// One call is under way; all others are refused.
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
    /// Another one of the same kind, closed.
    pub fn renewed(&self) -> Self {
        Self::new(self.open)
    }

    pub fn new(open: Duration) -> Self {
        Self {
            state: CLOSED,
            open,
        }
    }

    /// Whether a call may be made now. A `true` must be followed by `succeeded`, `failed` or `abandoned`.
    pub fn admit(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            // A probe that nobody reported on is taken for lost after as long again.
            State::Open { since } | State::Probing { since } => {
                let due = now.saturating_duration_since(since) >= self.open;
                if due {
                    self.state = State::Probing { since: now };
                }
                due
            }
        }
    }

    /// A call that began before the circuit opened says nothing new when it fails, and everything when it succeeds.
    pub fn succeeded(&mut self) {
        self.state = CLOSED;
    }

    /// `began`: when the call that failed was made.
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

    /// The caller went away before the store could answer: no evidence either way, so another caller probes. Not
    /// the very next one: a store that is down must not be asked by everybody as long as all of them hang up.
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
    fn three_failures_in_a_row_open_it_and_a_success_between_starts_anew() {
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
    fn calls_that_fail_together_are_one_failure() {
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
    fn one_probe_is_let_through_and_its_outcome_decides() {
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
    fn a_probe_whose_caller_went_away_is_made_again_after_a_pause() {
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
