//! The linger timer of a round: decides when a round of batches is sealed. Only messages that
//! can be sealed start the timer.
//!
//! Messages that cannot be sealed yet, however many, need another message or an answer from the
//! group, and only polling brings those.

use super::held::Held;
use super::reader::Subscription;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy)]
pub struct WaitForCompany {
    /// End of the linger time; set when something can first be sealed.
    until: Option<Instant>,
}

impl WaitForCompany {
    /// Starts a round. Messages that the last round left in the buffer have lingered long enough
    /// and can be sealed at once.
    pub fn of<T>(held: &Held<T>) -> Self {
        Self {
            until: held.can_cut().then(Instant::now),
        }
    }

    /// Returns the longest time to poll next, or `None` if the round is to be sealed now.
    pub fn left<T>(&mut self, held: &Held<T>, subscription: &Subscription) -> Option<Duration> {
        if !held.can_cut() {
            // The partition that could be sealed may have been revoked.
            self.until = None;
            return Some(Duration::MAX);
        }
        let now = Instant::now();
        let until = *self.until.get_or_insert(now + subscription.linger);
        let left = until.saturating_duration_since(now);
        (held.len() < subscription.round_max && !left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Topic;
    use crate::kafka::held::{Content, Taken};

    fn subscription(linger: Duration) -> Subscription {
        Subscription {
            group: "test",
            topics: vec![Topic::Events],
            dead_letters: Topic::EventsDeadLetters,
            linger,
            batch_max: 5,
            round_max: 8,
        }
    }

    fn push(held: &mut Held<i64>, offsets: std::ops::Range<i64>) {
        for offset in offsets {
            let taken = Taken {
                offset,
                at_ms: 1,
                content: Content::Row(offset),
            };
            held.push(&("events".to_owned(), 0), taken);
        }
    }

    fn held(intent: Option<i64>) -> Held<i64> {
        let mut held = Held::default();
        held.assign(("events".to_owned(), 0));
        held.set_intent(&("events".to_owned(), 0), intent);
        held
    }

    #[test]
    fn an_incomplete_intended_batch_is_polled_for_until_it_is_complete() {
        let (mut held, subscription) = (held(Some(5)), subscription(Duration::ZERO));
        push(&mut held, 0..3);
        let mut wait = WaitForCompany::of(&held);
        assert_eq!(wait.left(&held, &subscription), Some(Duration::MAX));
        assert!(held.cut(5).is_empty());
        let mut wait = WaitForCompany::of(&held);
        assert_eq!(wait.left(&held, &subscription), Some(Duration::MAX));
        push(&mut held, 3..6);
        assert_eq!(wait.left(&held, &subscription), None);
        assert_eq!(held.cut(5).len(), 1);
    }

    #[test]
    fn a_full_round_without_a_sealable_batch_is_still_polled_for() {
        let (mut held, subscription) = (held(Some(20)), subscription(Duration::from_secs(60)));
        push(&mut held, 0..20);
        let mut wait = WaitForCompany::of(&held);
        assert_eq!(wait.left(&held, &subscription), Some(Duration::MAX));
        push(&mut held, 20..21);
        assert_eq!(wait.left(&held, &subscription), None, "full, and complete");
    }

    #[test]
    fn a_sealable_batch_lingers_unless_the_last_round_left_it() {
        let (mut held, subscription) = (held(None), subscription(Duration::from_secs(60)));
        let mut wait = WaitForCompany::of(&held);
        push(&mut held, 0..1);
        let left = wait.left(&held, &subscription);
        assert!(left.is_some_and(|left| left <= subscription.linger));
        let mut next = WaitForCompany::of(&held);
        assert_eq!(next.left(&held, &subscription), None);
        held.revoke(&("events".to_owned(), 0));
        assert_eq!(wait.left(&held, &subscription), Some(Duration::MAX));
    }
}
