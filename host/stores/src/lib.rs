//! Stores: the ports that the layers above call, and their adapters.
//!
//! An adapter knows connections, timeouts and error classes. It knows no ranking. Database clients
//! (sqlx, clickhouse, redis, rdkafka) are dependencies of this crate alone.

pub mod breaker;
pub mod clickhouse;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
pub mod conformance;
pub mod embedded;
pub mod guard;
pub mod import;
pub mod kafka;
pub mod ports;
pub mod postgres;
pub mod records;
pub mod redis;
mod registry;
mod registry_read;
pub mod shared;
pub mod spool;
mod urls;

pub use urls::StackUrls;
