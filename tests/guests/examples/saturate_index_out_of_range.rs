//! Shows a post that it was not given, in the place of the first.

use nova_policy_sdk::{Request, saturator};

saturator! {
    saturate: order
}

fn order(posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<u32> {
    (1..=posts.len as u32).collect()
}
