//! Returns infinite scores.

use guests::in_service;
use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { total }
    each: total
}

fn total(_post: &Post, _params: &Params, request: &Request) -> [f64; 1] {
    [if in_service(request) {
        f64::INFINITY
    } else {
        1.0
    }]
}
