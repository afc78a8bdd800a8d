//! The feed: the steps of a request, and the pure parts that they use.

pub mod cached_candidates;
pub mod candidates;
pub mod cursor;
pub mod decision;
pub mod deleted;
pub mod ladder;
pub mod page;
pub mod preview;
pub mod shadow;
pub mod snapshot;
pub mod story;
pub mod timeline;
