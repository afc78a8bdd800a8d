//! Behaves well but returns the candidates in reverse, so a test can detect a different order.

use nova_policy_sdk::{Request, deduper};

deduper! {
    dedup: reversed
}

fn reversed(posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<u32> {
    (0..posts.len as u32).rev().collect()
}
