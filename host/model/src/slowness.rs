//! The rule for a policy that is too slow by itself, which needs no traffic on the active policy:
//! an experiment may cover every viewer.

use super::budget::{Counts, Thresholds};
use std::time::Duration;

/// Returns the reason for a quarantine if the policy uses so much processor time that most of its
/// deadline is gone in at least one ranking of a hundred. `active_calls` is the number of calls of
/// the active policy in the same window. If they are enough for a comparison, the comparison
/// decides, because it knows how much work the candidates are.
///
/// The limit is half of the deadline. An absolute time would not do: a deadline is what the author
/// declared and the operator allowed, and a policy in an interpreter needs more than one in Rust.
pub fn slow_by_itself(
    counts: &Counts,
    active_calls: u32,
    deadline: Duration,
    thresholds: &Thresholds,
) -> Option<String> {
    let enough = thresholds.p99_min_calls.max(1);
    if thresholds.p99_factor <= 0.0 || counts.calls < enough || active_calls >= enough {
        return None;
    }
    let p99 = counts.quantile(0.99)?;
    (p99 > deadline / 2).then(|| {
        format!(
            "p99 {:.1} ms of a deadline of {} ms, over {} calls in {} s",
            p99.as_secs_f64() * 1e3,
            deadline.as_millis(),
            counts.calls,
            thresholds.window_s
        )
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::budget::{Call, Window};

    const THRESHOLDS: Thresholds = Thresholds {
        min_failures: 5,
        min_viewers: 3,
        ratio: 0.05,
        window_s: 30,
        p99_factor: 3.0,
        p99_min_calls: 200,
    };
    const DEADLINE: Duration = Duration::from_millis(50);

    fn reason(calls: &[(u64, u32)], active_calls: u32, thresholds: &Thresholds) -> Option<String> {
        let mut window = Window::default();
        for (ms, times) in calls {
            let call = Call {
                viewer: 1,
                failure: None,
                cpu: Duration::from_millis(*ms),
            };
            (0..*times).for_each(|_| window.record(0, call));
        }
        let counts = window.counts(0, thresholds.window_s);
        slow_by_itself(&counts, active_calls, DEADLINE, thresholds)
    }

    #[test]
    fn a_policy_that_uses_most_of_its_deadline_is_too_slow_without_any_call_of_the_active_policy() {
        let slow = reason(&[(5, 280), (40, 20)], 0, &THRESHOLDS);
        assert!(
            slow.unwrap()
                .ends_with("of a deadline of 50 ms, over 300 calls in 30 s")
        );
    }

    #[test]
    fn few_calls_a_small_part_of_the_deadline_or_a_comparison_spare_it() {
        assert_eq!(reason(&[(40, 199)], 0, &THRESHOLDS), None, "too few");
        assert_eq!(reason(&[(20, 300)], 0, &THRESHOLDS), None, "within half");
        assert_eq!(reason(&[(5, 299), (40, 1)], 0, &THRESHOLDS), None, "rare");
        assert_eq!(reason(&[(40, 300)], 200, &THRESHOLDS), None, "compared");
        let off = Thresholds {
            p99_factor: 0.0,
            ..THRESHOLDS
        };
        assert_eq!(reason(&[(40, 300)], 0, &off), None, "switched off");
    }
}
