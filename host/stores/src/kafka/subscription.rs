//! The topics and the limits of a consumer group.

use super::Topic;
use std::time::Duration;

/// The topics that a consumer group reads, and the limits on its batches.
#[derive(Debug, Clone)]
pub struct Subscription {
    pub group: &'static str,
    pub topics: Vec<Topic>,
    pub dead_letters: Topic,
    /// Time that the first batch of a round lingers for more messages.
    pub linger: Duration,
    /// Maximum number of messages of one partition that are stored together.
    pub batch_max: usize,
    /// Number of messages in memory that ends a round early.
    pub round_max: usize,
}
