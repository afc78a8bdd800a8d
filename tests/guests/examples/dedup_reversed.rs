//! Behaves well, but hands on the candidates in reverse: whoever scores or explains them in another order can be told.

use nova_policy_sdk::{Request, deduper};

deduper! {
    dedup: reversed
}

fn reversed(posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<u32> {
    (0..posts.len as u32).rev().collect()
}
