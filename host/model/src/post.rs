//! Posts as the stores find them, and their counters.

use crate::time::UnixMs;
use serde::{Deserialize, Serialize};

/// A post as a candidate source returns it, before its features are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Post {
    pub post_id: u64,
    pub author_id: u64,
    pub created_at_ms: UnixMs,
}

/// Totals over the last 90 days, counted from events alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub views: u64,
    pub likes: u64,
    pub comments: u64,
    pub shares: u64,
    pub dwell_ms_sum: u64,
    pub exposures: u64,
}

impl Counters {
    /// `likes + 2·comments + 3·shares`, the weight by which trending posts are ordered.
    pub fn engagement(&self) -> u64 {
        self.likes + 2 * self.comments + 3 * self.shares
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrendingPost {
    pub post_id: u64,
    pub author_id: u64,
    pub window_start_ms: UnixMs,
    /// Sums over the window.
    pub counters: Counters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelinePost {
    pub post: Post,
    /// True if the author is a followee and the post is at most 72 h old.
    pub followed: bool,
}
