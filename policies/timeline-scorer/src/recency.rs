//! Scores by position in time.
//!
//! The time itself cannot be the score: an `f32` has 24 bits and a time in milliseconds needs 41,
//! so posts within minutes of each other would get equal scores and lose their order. A rank is
//! exact for up to 16 million candidates.

use crate::{Columns, Params};
use nova_policy_sdk::Request;

/// The oldest post gets 1, the newest `n`. Within one millisecond the higher id is the newer post.
pub fn by_rank(posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<[f64; 1]> {
    let mut oldest_first: Vec<usize> = (0..posts.len).collect();
    oldest_first.sort_unstable_by_key(|&i| (posts.created_at_ms[i], posts.post_ids[i]));
    let mut scores = vec![[0.0]; posts.len];
    for (rank, index) in oldest_first.into_iter().enumerate() {
        scores[index] = [(rank + 1) as f64];
    }
    scores
}
