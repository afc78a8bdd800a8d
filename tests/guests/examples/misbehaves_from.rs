//! Behaves for viewers below an id and traps for the others: whoever calls decides after how many
//! good calls it begins to fail, and for how long.

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
        (request.user_id as f64) < params.first_victim,
        "this viewer gets no feed"
    );
    [-post.age_hours]
}
