//! Failpoints: named points at which a test may abort the process, like a crash would.
//!
//! Failpoints exist for tests only, and only in builds with debug assertions.
//! `NOVA_FAILPOINTS="after_insert=abort_once:3"` aborts the process when it reaches that point
//! for the third time. The points are: `after_spool_commit` (events are durable, but the client
//! has no answer), `after_broker_ack` (the broker has them, but the spool has not recorded it),
//! `after_intent` (a batch is announced, but not stored), `after_insert` (it is stored, but the
//! offsets are not committed).

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};

/// Number of passes that each armed point has left before it aborts.
static ARMED: LazyLock<HashMap<String, AtomicI64>> = LazyLock::new(|| {
    let armed = std::env::var("NOVA_FAILPOINTS").unwrap_or_default();
    parse(&armed)
        .into_iter()
        .map(|(point, at)| (point, AtomicI64::new(at)))
        .collect()
});

/// Marks that the process has reached a named point.
pub fn hit(point: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    if let Some(left) = ARMED.get(point)
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        eprintln!("nova: failpoint {point}");
        std::process::abort();
    }
}

fn parse(armed: &str) -> Vec<(String, i64)> {
    armed
        .split(',')
        .filter_map(|entry| {
            let (point, action) = entry.trim().split_once('=')?;
            let at = action.strip_prefix("abort_once:")?.parse().ok()?;
            Some((point.to_owned(), at))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_entries_arm_a_failpoint() {
        let armed = parse("after_insert=abort_once:3, after_intent=abort_once:1,x,y=panic");
        assert_eq!(
            armed,
            [
                ("after_insert".to_owned(), 3),
                ("after_intent".to_owned(), 1)
            ]
        );
        assert!(parse("").is_empty());
    }
}
