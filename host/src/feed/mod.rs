//! The feed: the steps of a request, and the pure parts that they use.

pub mod cached_candidates;
pub mod candidates;
pub mod cursor;
pub mod decision;
pub mod ladder;
pub mod page;
pub mod preview;
mod ranked_feed;
pub mod shadow;
pub mod story;
pub mod timeline;
