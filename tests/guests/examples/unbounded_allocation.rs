//! Allocates memory and writes to it until it is stopped.

use guests::in_service;
use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { total }
    batch: totals
}

fn totals(posts: &Columns<'_>, _params: &Params, request: &Request) -> Vec<[f64; 1]> {
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    while in_service(request) {
        hoard.push(std::hint::black_box(vec![1; 1 << 20]));
    }
    vec![[hoard.len() as f64]; posts.len]
}
