//! Shows the first post at every position: the length is right, but it is not a permutation.

use guests::in_service;
use nova_policy_sdk::{Request, saturator};

saturator! {
    saturate: order
}

fn order(posts: &Columns<'_>, _params: &Params, request: &Request) -> Vec<u32> {
    if in_service(request) {
        vec![0; posts.len]
    } else {
        (0..posts.len as u32).collect()
    }
}
