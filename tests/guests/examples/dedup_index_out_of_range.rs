//! Returns the index of a candidate that it was not given.

use guests::in_service;
use nova_policy_sdk::{Request, deduper};

deduper! {
    dedup: keep
}

fn keep(posts: &Columns<'_>, _params: &Params, request: &Request) -> Vec<u32> {
    (0..posts.len as u32 + u32::from(in_service(request))).collect()
}
