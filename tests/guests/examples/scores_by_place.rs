//! Behaves well, but scores a post by its place among those it is given, the last one best.

use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { place }
    batch: by_place
}

fn by_place(posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<[f64; 1]> {
    (0..posts.len).map(|place| [place as f64]).collect()
}
