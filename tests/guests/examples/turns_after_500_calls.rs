//! Ranks newest first for the first 500 calls of an instance, then oldest first. A fresh instance
//! never gets that far, and a reused one only after admission is done with it.

use nova_policy_sdk::{Request, scorer};
use std::sync::atomic::{AtomicU32, Ordering};

static CALLS: AtomicU32 = AtomicU32::new(0);

scorer! {
    explains { time }
    batch: by_time
}

fn by_time(posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<[f64; 1]> {
    let sign = match CALLS.fetch_add(1, Ordering::Relaxed) {
        0..500 => 1.0,
        _ => -1.0,
    };
    let times = posts.created_at_ms.iter();
    times.map(|&at_ms| [sign * at_ms as f64]).collect()
}
