//! Instants as the whole of Nova counts them: milliseconds since the Unix epoch, UTC. The wall
//! clock itself is read in `nova_support::clock` alone.

use chrono::{DateTime, SecondsFormat, Utc};

/// Milliseconds since the Unix epoch, UTC.
pub type UnixMs = u64;

pub const HOUR_MS: u64 = 3_600_000;
pub const DAY_MS: u64 = 24 * HOUR_MS;

/// Formats a time as RFC 3339, in UTC with milliseconds.
pub fn rfc3339(at_ms: UnixMs) -> String {
    utc(at_ms).to_rfc3339_opts(SecondsFormat::Millis, true)
}

pub fn utc(at_ms: UnixMs) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(at_ms as i64).unwrap_or_default()
}
