//! Discovery outside the feed: trending posts and users to follow.

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
pub(crate) mod format_tests;
pub mod suggested;
pub mod trending;
