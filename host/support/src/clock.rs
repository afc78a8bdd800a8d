//! Wall-clock time, read in one place. Deadlines and TTLs use the monotonic clock instead.

#![expect(
    clippy::disallowed_methods,
    reason = "the one file that reads the wall clock"
)]

use chrono::Utc;
use nova_model::time::UnixMs;

/// Returns the current time, in milliseconds since the Unix epoch, UTC.
pub fn unix_ms() -> UnixMs {
    Utc::now().timestamp_millis().max(0) as u64
}
