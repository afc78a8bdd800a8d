//! Allocates until it is stopped, and touches what it gets.

use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { total }
    batch: totals
}

fn totals(_posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<[f64; 1]> {
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    loop {
        hoard.push(std::hint::black_box(vec![1; 1 << 20]));
    }
}
