//! `w_freshness·exp(−decay·age) + w_engagement·log1p(engagement / max(1, exposures)) +
//! w_affinity·log1p(affinity)`, in 64-bit arithmetic.

use crate::{Params, Post};
use nova_policy_sdk::Request;
use nova_policy_sdk::math::{at_least, exp, ln_1p};

/// Returns the three weighted parts of one post's score.
///
/// Negative counts and ages count as zero, so that a fast clock cannot make a post fresher than
/// fresh and a wrong count cannot turn `log1p` into NaN. So every part is finite for finite
/// features: freshness is in 0..=1, and the logarithm of the largest possible ratio is below 100.
// Always inlined, because otherwise the surrounding loop does not become SIMD code.
#[inline(always)]
pub fn parts(post: &Post, params: &Params, _request: &Request) -> [f64; 3] {
    let freshness = exp(-params.decay_per_hour * at_least(post.age_hours, 0.0));
    let engagement = params.like_weight * at_least(post.likes, 0.0)
        + params.comment_weight * at_least(post.comments, 0.0)
        + params.share_weight * at_least(post.shares, 0.0);
    let engagement_rate = engagement / at_least(post.exposures, 1.0);
    [
        params.w_freshness * freshness,
        params.w_engagement * ln_1p(engagement_rate),
        params.w_affinity * ln_1p(post.affinity),
    ]
}
