//! Wall-clock time, read in one place. Deadlines and TTLs use the monotonic clock instead.

use crate::stores::UnixMs;
use chrono::{DateTime, SecondsFormat, Utc};

/// Returns the current time, in milliseconds since the Unix epoch, UTC.
pub fn unix_ms() -> UnixMs {
    Utc::now().timestamp_millis().max(0) as u64
}

/// Formats a time as RFC 3339, in UTC with milliseconds.
pub fn rfc3339(at_ms: UnixMs) -> String {
    utc(at_ms).to_rfc3339_opts(SecondsFormat::Millis, true)
}

pub fn utc(at_ms: UnixMs) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(at_ms as i64).unwrap_or_default()
}
