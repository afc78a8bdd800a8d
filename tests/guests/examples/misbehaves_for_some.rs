//! Traps for every viewer whose id is a multiple of a number, so a test can choose the share of the
//! viewers for whom a policy fails.

use guests::in_service;
use nova_policy_sdk::{Request, scorer};

scorer! {
    features { age_hours }
    parameters {
        /// The rankings of every viewer whose id is a multiple of this number trap.
        every: 9007199254740991.0 in 1.0..=9007199254740991.0,
    }
    explains { freshness }
    each: total
}

fn total(post: &Post, params: &Params, request: &Request) -> [f64; 1] {
    assert!(
        !in_service(request) || !request.user_id.is_multiple_of(params.every as u64),
        "this viewer gets no feed"
    );
    [-post.age_hours]
}
