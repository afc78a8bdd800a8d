//! Writes to much memory in service. Linear memory never shrinks, so a reused instance keeps it.

use guests::in_service;
use nova_policy_sdk::{Request, scorer};

scorer! {
    features { age_hours }
    parameters {
        /// Memory that a ranking writes to, in MiB.
        mib: 100.0 in 0.0..=250.0,
    }
    explains { freshness }
    batch: totals
}

fn totals(posts: &Columns<'_>, params: &Params, request: &Request) -> Vec<[f64; 1]> {
    if in_service(request) {
        std::hint::black_box(vec![1_u8; (params.mib as usize) << 20]);
    }
    let ages = posts.age_hours.iter();
    ages.map(|age| [-f64::from(*age)]).collect()
}
