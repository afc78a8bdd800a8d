//! Ranks newer posts first, and posts with more likes higher.

use nova_policy_sdk::{Request, scorer};

scorer! {
    features { age_hours, likes }
    parameters {
        /// Hours after which a post is worth half.
        half_life_hours: 12.0 in 0.1..=720.0,
        /// What likes count against freshness.
        like_weight: 0.1 in 0.0..=10.0,
    }
    explains { freshness, popularity }
    each: parts
}

/// Returns the parts of a post's score, which is their sum.
fn parts(post: &Post, params: &Params, _request: &Request) -> [f64; 2] {
    let freshness = (-post.age_hours.max(0.0) / params.half_life_hours).exp2();
    [freshness, params.like_weight * post.likes.max(0.0).ln_1p()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use nova_policy_sdk::testing::Sample;

    #[test]
    fn a_post_is_worth_half_after_its_half_life() {
        let posts = Sample::new(describe())
            .row(&[("age_hours", 0.0)])
            .row(&[("age_hours", 12.0)]);
        assert_eq!(posts.score(score), [1.0, 0.5]);
    }
}
