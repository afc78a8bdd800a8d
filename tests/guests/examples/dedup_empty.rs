//! Drops everything.

use nova_policy_sdk::{Request, deduper};

deduper! {
    dedup: keep
}

fn keep(_posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<u32> {
    Vec::new()
}
