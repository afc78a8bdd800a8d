//! Drops the last post.

use guests::in_service;
use nova_policy_sdk::{Request, saturator};

saturator! {
    saturate: order
}

fn order(posts: &Columns<'_>, _params: &Params, request: &Request) -> Vec<u32> {
    let missing = usize::from(in_service(request));
    (0..posts.len.saturating_sub(missing) as u32).collect()
}
