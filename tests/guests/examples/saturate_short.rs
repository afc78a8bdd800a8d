//! Drops the last post.

use nova_policy_sdk::{Request, saturator};

saturator! {
    saturate: order
}

fn order(posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<u32> {
    (0..posts.len.saturating_sub(1) as u32).collect()
}
