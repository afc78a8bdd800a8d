//! `w_freshness·exp(−decay·age) + w_engagement·log1p(engagement / max(1, exposures)) +
//! w_affinity·log1p(affinity)`, in 64-bit arithmetic.

use crate::{Params, Post};
use nova_policy_sdk::Request;

/// The three weighted parts of one post's score.
///
/// Counts and ages below zero count as zero: a clock that runs ahead must not make a post fresher
/// than fresh, nor a miscount turn `log1p` into NaN. With that, every part is finite for any finite
/// features: freshness stays in 0..=1, and the logarithm of the largest possible ratio is below 100.
#[inline]
pub fn parts(post: &Post, params: &Params, _request: &Request) -> [f64; 3] {
    let freshness = (-params.decay_per_hour * post.age_hours.max(0.0)).exp();
    let engagement = params.like_weight * post.likes.max(0.0)
        + params.comment_weight * post.comments.max(0.0)
        + params.share_weight * post.shares.max(0.0);
    let engagement_rate = engagement / post.exposures.max(1.0);
    [
        params.w_freshness * freshness,
        params.w_engagement * engagement_rate.ln_1p(),
        params.w_affinity * post.affinity.max(0.0).ln_1p(),
    ]
}
