//! Which candidates are repeats: of another candidate, or of what the viewer was shown.

use crate::{Columns, Params, Reason};
use nova_policy_sdk::Request;
use std::cmp::Reverse;

/// Indices to keep, in the order of the input.
pub fn keep(posts: &Columns<'_>, params: &Params, request: &Request) -> Vec<u32> {
    let reasons = reasons(posts, params, request);
    let kept = |reason: Reason| matches!(reason, Reason::Fresh | Reason::Returned);
    (0u32..)
        .zip(reasons)
        .filter(|&(_, reason)| kept(reason))
        .map(|(index, _)| index)
        .collect()
}

/// What becomes of each candidate.
pub fn reasons(posts: &Columns<'_>, params: &Params, _request: &Request) -> Vec<Reason> {
    let mut reasons = by_sight(posts);
    fold_copies(posts.post_ids, &mut reasons);

    let fresh = reasons
        .iter()
        .filter(|&&reason| reason == Reason::Fresh)
        .count();
    let missing = (params.min_results as usize).saturating_sub(fresh);
    let mut seen: Vec<usize> = (0..posts.len)
        .filter(|&index| reasons[index] == Reason::Seen)
        .collect();
    if missing < seen.len() {
        seen.sort_unstable_by_key(|&i| Reverse((posts.created_at_ms[i], posts.post_ids[i])));
    }
    for index in seen.into_iter().take(missing) {
        reasons[index] = Reason::Returned;
    }
    reasons
}

fn by_sight(posts: &Columns<'_>) -> Vec<Reason> {
    let reason = |&seen: &f32| {
        if seen > 0.5 {
            Reason::Seen
        } else {
            Reason::Fresh
        }
    };
    posts.seen.iter().map(reason).collect()
}

/// Leaves the first copy of each post. It counts as seen if any copy does: being seen is a fact
/// about the post, and which copy happens to stand first must not bring a seen post back.
fn fold_copies(post_ids: &[u64], reasons: &mut [Reason]) {
    // Sorting beats a hash set here: no hasher to seed, and a table keyed by ids that a stranger
    // may choose needs one.
    let mut by_post: Vec<(u64, u32)> = post_ids.iter().copied().zip(0u32..).collect();
    by_post.sort_unstable();
    for copies in by_post
        .chunk_by(|a, b| a.0 == b.0)
        .filter(|copies| copies.len() > 1)
    {
        let is_seen = copies
            .iter()
            .any(|copy| reasons[copy.1 as usize] == Reason::Seen);
        for copy in copies {
            reasons[copy.1 as usize] = Reason::Copy;
        }
        reasons[copies[0].1 as usize] = if is_seen { Reason::Seen } else { Reason::Fresh };
    }
}
