//! Behaves well but puts the oldest post first, so a test can tell that it served a feed.

use nova_policy_sdk::{Request, scorer};
use std::cmp::Reverse;

scorer! {
    explains { age }
    batch: by_age_rank
}

/// Scores by rank, the exact mirror of the bundled timeline; an `f32` age would tie neighbours.
fn by_age_rank(posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<[f64; 1]> {
    let mut newest_first: Vec<usize> = (0..posts.len).collect();
    newest_first.sort_unstable_by_key(|&i| Reverse((posts.created_at_ms[i], posts.post_ids[i])));
    let mut scores = vec![[0.0]; posts.len];
    for (rank, index) in newest_first.into_iter().enumerate() {
        scores[index] = [(rank + 1) as f64];
    }
    scores
}
