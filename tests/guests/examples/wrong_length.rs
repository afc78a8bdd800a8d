//! Omits the last score.

use guests::in_service;
use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { total }
    batch: totals
}

fn totals(posts: &Columns<'_>, _params: &Params, request: &Request) -> Vec<[f64; 1]> {
    let missing = usize::from(in_service(request));
    vec![[1.0]; posts.len.saturating_sub(missing)]
}
