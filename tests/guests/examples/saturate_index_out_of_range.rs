//! Replaces the first post by one that it was not given.

use guests::in_service;
use nova_policy_sdk::{Request, saturator};

saturator! {
    saturate: order
}

fn order(posts: &Columns<'_>, _params: &Params, request: &Request) -> Vec<u32> {
    let first = u32::from(in_service(request));
    (first..posts.len as u32 + first).collect()
}
