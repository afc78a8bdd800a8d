//! Drops every candidate.

use guests::in_service;
use nova_policy_sdk::{Request, deduper};

deduper! {
    dedup: keep
}

fn keep(posts: &Columns<'_>, _params: &Params, request: &Request) -> Vec<u32> {
    if in_service(request) {
        Vec::new()
    } else {
        (0..posts.len as u32).collect()
    }
}
