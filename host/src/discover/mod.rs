//! What a viewer may discover beside the feed: trending posts and users to follow.

pub mod suggested;
pub mod trending;
