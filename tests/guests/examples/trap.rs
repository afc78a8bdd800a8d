//! Panics, which is an `unreachable` trap in WebAssembly.

use guests::in_service;
use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { total }
    each: total
}

fn total(post: &Post, _params: &Params, request: &Request) -> [f64; 1] {
    assert!(!in_service(request), "no score for post {}", post.post_id);
    [1.0]
}
