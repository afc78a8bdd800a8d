//! Behaves for viewers below an id and traps for the others, so a test can choose the number of
//! good calls before the first failure and the number of failures.

use guests::in_service;
use nova_policy_sdk::{Request, scorer};

scorer! {
    features { age_hours }
    parameters {
        /// The first viewer whose rankings trap.
        first_victim: 9007199254740991.0 in 1.0..=9007199254740991.0,
    }
    explains { freshness }
    each: total
}

fn total(post: &Post, params: &Params, request: &Request) -> [f64; 1] {
    assert!(
        !in_service(request) || (request.user_id as f64) < params.first_victim,
        "this viewer gets no feed"
    );
    [-post.age_hours]
}
