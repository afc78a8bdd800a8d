//! Misbehaves at once, in the way that its parameter selects, so that admission can detect it. Both
//! ends of the parameter's range behave well, because admission tests parameters at their ends too.

use nova_policy_sdk::{Request, scorer};
use std::sync::atomic::{AtomicU32, Ordering};

scorer! {
    features { age_hours, likes }
    parameters {
        /// 0 and 9 not at all, 1 traps, 2 never answers, 3 allocates without end, 4 leaves out a
        /// score, 5 answers NaN, 6 counts its calls, 7 takes quadratic time, 8 traps on posts
        /// without likes.
        how: 0.0 in 0.0..=9.0,
        /// Divides the score where it is set, as nobody forbade 0.
        divisor: 3.0 in 0.0..=3.0,
    }
    explains { total }
    batch: totals
}

static CALLS: AtomicU32 = AtomicU32::new(0);

fn totals(posts: &Columns<'_>, params: &Params, _request: &Request) -> Vec<[f64; 1]> {
    let mut scores: Vec<[f64; 1]> = posts
        .age_hours
        .iter()
        .map(|age| [-f64::from(*age)])
        .collect();
    if params.divisor != 3.0 {
        scores
            .iter_mut()
            .for_each(|score| score[0] /= params.divisor);
    }
    match params.how as u32 {
        1 => panic!("as told"),
        2 => loop {
            std::hint::black_box(&scores);
        },
        3 => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(std::hint::black_box(vec![1; 1 << 20]));
            }
        }
        4 => drop(scores.pop()),
        5 => scores.iter_mut().for_each(|score| score[0] = f64::NAN),
        6 => {
            let calls = CALLS.fetch_add(1, Ordering::Relaxed);
            scores
                .iter_mut()
                .for_each(|score| score[0] += f64::from(calls));
        }
        7 => {
            for _ in 0..100 * scores.len() * scores.len() {
                std::hint::black_box(&scores);
            }
        }
        8 => assert!(posts.likes.iter().any(|likes| *likes > 0.0) || posts.len == 0),
        _ => {}
    }
    scores
}
