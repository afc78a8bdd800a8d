//! Scores beyond what a finite number holds.

use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { total }
    each: total
}

fn total(_post: &Post, _params: &Params, _request: &Request) -> [f64; 1] {
    [f64::INFINITY]
}
