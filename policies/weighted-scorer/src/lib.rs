//! The scorer of the `baseline` recipe: a weighted sum of freshness, engagement and affinity.

mod formula;

nova_policy_sdk::scorer! {
    features { age_hours, likes, comments, shares, exposures, affinity }
    parameters {
        /// Weight of freshness, which is 1 for a post of this moment and decays with its age.
        w_freshness: 0.30 in 0.0..=100.0,
        /// Weight of engagement per exposure, on a logarithmic scale.
        w_engagement: 0.40 in 0.0..=100.0,
        /// Weight of the viewer's interactions with the author, on a logarithmic scale.
        w_affinity: 0.30 in 0.0..=100.0,
        /// Exponential decay of freshness for each hour of age; 0.1 halves it in about 7 hours.
        decay_per_hour: 0.1 in 0.0..=10.0,
        /// What a like counts as engagement.
        like_weight: 1.0 in 0.0..=100.0,
        /// What a comment counts as engagement.
        comment_weight: 2.0 in 0.0..=100.0,
        /// What a share counts as engagement.
        share_weight: 3.0 in 0.0..=100.0,
    }
    explains { freshness, engagement, affinity }
    each: formula::parts
}
