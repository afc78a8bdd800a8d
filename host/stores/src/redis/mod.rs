//! The Redis adapter: data that hosts share, namely the feed cache, small values, seen posts,
//! claims on events, leases on jobs and deleted posts.
//!
//! One connection serves all parts (`connection`); each part is one file. All of this data may
//! be lost at any moment. A value that is missing, unreachable or in another format is a cache
//! miss, and a host computes it again.

pub mod bloom;
pub mod cache;
pub mod claims;
mod codec;
mod concurrency_limit;
mod connection;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;
mod keys;
pub mod lease;
pub mod scan;
pub mod seen;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
pub mod tombstones;
pub mod values;

pub use connection::{CALL_TIMEOUT, Redis};

/// The name used in `degraded`, `/health` and metrics.
pub const STORE_NAME: &str = "redis";
