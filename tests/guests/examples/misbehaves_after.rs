//! Traps for one viewer and behaves for all others.

use nova_policy_sdk::{Request, scorer};

scorer! {
    features { age_hours }
    parameters {
        /// The viewer whose rankings trap; 0 is nobody.
        victim: 0.0 in 0.0..=9007199254740991.0,
    }
    explains { freshness }
    each: total
}

fn total(post: &Post, params: &Params, request: &Request) -> [f64; 1] {
    assert!(
        request.user_id as f64 != params.victim,
        "this viewer gets no feed"
    );
    [-post.age_hours]
}
