//! Never returns.

use guests::in_service;
use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { total }
    each: total
}

fn total(post: &Post, _params: &Params, request: &Request) -> [f64; 1] {
    let mut turns = post.post_id;
    while in_service(request) {
        // The optimiser may not assume anything about a black box, so it keeps the loop.
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
    [turns as f64]
}
