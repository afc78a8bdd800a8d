//! Returns the first candidate twice.

use guests::in_service;
use nova_policy_sdk::{Request, deduper};

deduper! {
    dedup: keep
}

fn keep(posts: &Columns<'_>, _params: &Params, request: &Request) -> Vec<u32> {
    let all = 0..posts.len as u32;
    all.clone()
        .take(usize::from(in_service(request)))
        .chain(all)
        .collect()
}
