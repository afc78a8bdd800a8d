//! What hosts share in Redis: the feed cache, small values, seen posts, claims on events, leases on jobs, deleted posts.
//!
//! One connection serves them all (`connection`); each part is one file. Everything here may be lost at any
//! moment: a value that is gone, of another format or out of reach is a miss, and somebody makes it again.

pub mod bloom;
pub mod cache;
pub mod claims;
mod codec;
mod connection;
mod keys;
pub mod lease;
mod line;
pub mod scan;
pub mod seen;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
pub mod tombstones;
pub mod values;

pub use connection::{CALL_TIMEOUT, Redis};

/// The name in `degraded`, `/health` and metrics.
pub const STORE_NAME: &str = "redis";
