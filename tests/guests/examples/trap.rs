//! Panics, which is an `unreachable` trap in WebAssembly.

use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { total }
    each: total
}

fn total(post: &Post, _params: &Params, _request: &Request) -> [f64; 1] {
    panic!("no score for post {}", post.post_id)
}
