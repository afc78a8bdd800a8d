//! Returns NaN scores, as a division of zero by zero would.

use guests::in_service;
use nova_policy_sdk::{Request, scorer};

scorer! {
    explains { total }
    each: total
}

fn total(_post: &Post, _params: &Params, request: &Request) -> [f64; 1] {
    [if in_service(request) { f64::NAN } else { 1.0 }]
}
