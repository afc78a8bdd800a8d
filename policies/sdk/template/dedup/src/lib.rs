//! Removes posts that the viewer has seen, unless too few others would remain.

use nova_policy_sdk::{Request, deduper};

deduper! {
    features { seen }
    parameters {
        /// With fewer unseen posts than this, everything is kept.
        min_results: 20 in 1..=1000,
    }
    dedup: unseen
}

/// Returns the indices to keep. The host refuses an empty result if there are candidates.
fn unseen(posts: &Columns<'_>, params: &Params, _request: &Request) -> Vec<u32> {
    let all = 0..posts.len as u32;
    let unseen: Vec<u32> = all
        .clone()
        .filter(|&i| posts.seen[i as usize] == 0.0)
        .collect();
    if unseen.len() < params.min_results as usize {
        all.collect()
    } else {
        unseen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nova_policy_sdk::testing::Sample;

    #[test]
    fn seen_posts_are_removed_only_while_enough_others_remain() {
        let posts = Sample::new(describe())
            .row(&[("seen", 1.0)])
            .row(&[("seen", 0.0)]);
        assert_eq!(posts.clone().param("min_results", 1.0).dedup(dedup), [1]);
        assert_eq!(posts.param("min_results", 2.0).dedup(dedup), [0, 1]);
    }
}
