//! The linger timer of a round: decides when a round of batches is sealed. Only messages that
//! can be sealed start the timer.
//!
//! Messages that cannot be sealed yet, however many, need another message or an answer from the
//! group, and only polling brings those.

use super::partition_buffer::PartitionBuffer;
use super::subscription::Subscription;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy)]
pub struct LingerTimer {
    /// End of the linger time; set when something can first be sealed.
    until: Option<Instant>,
}

impl LingerTimer {
    /// Starts a round. Messages that the last round left in the buffer have lingered long enough
    /// and can be sealed at once.
    pub fn new<T>(buffer: &PartitionBuffer<T>) -> Self {
        Self {
            until: buffer.can_seal().then(Instant::now),
        }
    }

    /// Returns the longest time to poll next, or `None` if the round is to be sealed now.
    pub fn left<T>(
        &mut self,
        buffer: &PartitionBuffer<T>,
        subscription: &Subscription,
    ) -> Option<Duration> {
        if !buffer.can_seal() {
            // The partition that could be sealed may have been revoked.
            self.until = None;
            return Some(Duration::MAX);
        }
        let now = Instant::now();
        let until = *self.until.get_or_insert(now + subscription.linger);
        let left = until.saturating_duration_since(now);
        (buffer.len() < subscription.round_max && !left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Topic;
    use crate::kafka::partition_buffer::{BufferedMessage, Content};

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

    fn push(buffer: &mut PartitionBuffer<i64>, offsets: std::ops::Range<i64>) {
        for offset in offsets {
            let message = BufferedMessage {
                offset,
                at_ms: 1,
                content: Content::Row(offset),
            };
            buffer.push(&("events".to_owned(), 0), message);
        }
    }

    fn buffer(intent: Option<i64>) -> PartitionBuffer<i64> {
        let mut buffer = PartitionBuffer::default();
        buffer.assign(("events".to_owned(), 0));
        buffer.set_intent(&("events".to_owned(), 0), intent);
        buffer
    }

    #[test]
    fn an_incomplete_intended_batch_is_polled_for_until_it_is_complete() {
        let (mut buffer, subscription) = (buffer(Some(5)), subscription(Duration::ZERO));
        push(&mut buffer, 0..3);
        let mut wait = LingerTimer::new(&buffer);
        assert_eq!(wait.left(&buffer, &subscription), Some(Duration::MAX));
        assert!(buffer.seal(5).is_empty());
        let mut wait = LingerTimer::new(&buffer);
        assert_eq!(wait.left(&buffer, &subscription), Some(Duration::MAX));
        push(&mut buffer, 3..6);
        assert_eq!(wait.left(&buffer, &subscription), None);
        assert_eq!(buffer.seal(5).len(), 1);
    }

    #[test]
    fn a_full_round_without_a_sealable_batch_is_still_polled_for() {
        let (mut buffer, subscription) = (buffer(Some(20)), subscription(Duration::from_secs(60)));
        push(&mut buffer, 0..20);
        let mut wait = LingerTimer::new(&buffer);
        assert_eq!(wait.left(&buffer, &subscription), Some(Duration::MAX));
        push(&mut buffer, 20..21);
        assert_eq!(
            wait.left(&buffer, &subscription),
            None,
            "full, and complete"
        );
    }

    #[test]
    fn a_sealable_batch_lingers_unless_the_last_round_left_it() {
        let (mut buffer, subscription) = (buffer(None), subscription(Duration::from_secs(60)));
        let mut wait = LingerTimer::new(&buffer);
        push(&mut buffer, 0..1);
        let left = wait.left(&buffer, &subscription);
        assert!(left.is_some_and(|left| left <= subscription.linger));
        let mut next = LingerTimer::new(&buffer);
        assert_eq!(next.left(&buffer, &subscription), None);
        buffer.revoke(&("events".to_owned(), 0));
        assert_eq!(wait.left(&buffer, &subscription), Some(Duration::MAX));
    }
}
