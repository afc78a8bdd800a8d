//! Discovery outside the feed: trending posts and users to follow.

pub mod suggested;
pub mod trending;
