//! Burns processor time in service, as a rule with too much work does.

use guests::in_service;
use nova_policy_sdk::{Request, scorer};

scorer! {
    features { age_hours }
    parameters {
        /// Turns of an empty loop for each ranking, in millions.
        million_turns: 1000000.0 in 0.0..=1000000.0,
    }
    explains { freshness }
    batch: totals
}

fn totals(posts: &Columns<'_>, params: &Params, request: &Request) -> Vec<[f64; 1]> {
    let turns = if in_service(request) {
        (params.million_turns * 1e6) as u64
    } else {
        0
    };
    for turn in 0..turns {
        std::hint::black_box(turn);
    }
    let ages = posts.age_hours.iter();
    ages.map(|age| [-f64::from(*age)]).collect()
}
