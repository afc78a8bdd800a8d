//! Ranks proven posts first: the rate at which viewers of a post certainly react, plus freshness.
//!
//! A post with 1 reaction of 1 viewer has a higher ratio than one with 90 of 100, but is not
//! better. Wilson's lower bound says what the ratio is at least, given how few saw the post.
//!
//! E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
//! (1927), 209–212; for ranking: E. Miller, "How Not To Sort By Average Rating" (2009).

use nova_policy_sdk::{Request, scorer};

scorer! {
    features { age_hours, likes, comments, shares, exposures }
    parameters {
        /// Weight of the share of viewers who surely react.
        w_proven: 1.0 in 0.0..=100.0,
        /// Weight of freshness, which is 1 for a post of this moment.
        w_fresh: 0.5 in 0.0..=100.0,
        /// Hours after which freshness is worth half.
        half_life_hours: 24.0 in 0.1..=720.0,
        /// How sure: 1.96 leaves 2.5 % of doubt, 0 takes the plain ratio.
        z: 1.96 in 0.0..=5.0,
    }
    explains { proven, fresh }
    each: parts
}

/// Returns the lower bound of the true success rate, `z` standard deviations down; 0 … 1.
pub fn wilson_lower_bound(successes: f64, trials: f64, z: f64) -> f64 {
    if trials <= 0.0 {
        return 0.0;
    }
    let share = successes / trials;
    let z2 = z * z;
    let centre = share + z2 / (2.0 * trials);
    let margin = z * ((share * (1.0 - share) + z2 / (4.0 * trials)) / trials).sqrt();
    ((centre - margin) / (1.0 + z2 / trials)).max(0.0)
}

fn parts(post: &Post, params: &Params, _request: &Request) -> [f64; 2] {
    // One viewer may react more than once.
    let reactions = (post.likes + post.comments + post.shares).min(post.exposures);
    let proven = params.w_proven * wilson_lower_bound(reactions, post.exposures, params.z);
    // The hyperbola needs no exponential, so it gives the same result in every language.
    let fresh = params.w_fresh / (1.0 + post.age_hours.max(0.0) / params.half_life_hours);
    [proven, fresh]
}

#[cfg(test)]
mod tests {
    use super::*;
    use nova_policy_sdk::testing::Sample;

    #[test]
    fn the_bound_matches_published_tables() {
        // Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29 at 95 %.
        for (successes, trials, lower) in [
            (81.0, 263.0, 0.2553),
            (15.0, 148.0, 0.0624),
            (0.0, 20.0, 0.0),
            (1.0, 29.0, 0.0061),
        ] {
            let bound = wilson_lower_bound(successes, trials, 1.959964);
            assert!(
                (bound - lower).abs() < 5e-5,
                "{successes} of {trials}: {bound}"
            );
        }
    }

    #[test]
    fn one_of_one_ranks_below_ninety_of_a_hundred() {
        let scores = Sample::new(describe())
            .row(&[("likes", 1.0), ("exposures", 1.0)])
            .row(&[("likes", 90.0), ("exposures", 100.0)])
            .score(score);
        assert!(scores[0] < scores[1]);
    }

    #[test]
    fn a_post_without_exposures_has_only_its_freshness() {
        let parts = Sample::new(describe())
            .row(&[("age_hours", 0.0)])
            .row(&[("age_hours", 24.0)])
            .score(explain);
        assert_eq!(parts, [0.0, 0.0, 0.5, 0.25]);
    }

    #[test]
    fn more_reactions_than_viewers_count_as_all_of_them() {
        let scores = Sample::new(describe())
            .row(&[("likes", 50.0), ("comments", 50.0), ("exposures", 10.0)])
            .row(&[("likes", 10.0), ("exposures", 10.0)])
            .score(score);
        assert_eq!(scores[0], scores[1]);
    }
}
