//! Behaves well, but a post's score is its index in the input, so the last post is the best.

use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { place }
    batch: by_place
}

fn by_place(posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<[f64; 1]> {
    (0..posts.len).map(|place| [place as f64]).collect()
}
