//! Which candidates are repeats: of another candidate, or of what the viewer was shown.

use crate::{Columns, Params, Reason};
use nova_policy_sdk::{Groups, Request};
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
pub fn reasons(posts: &Columns<'_>, params: &Params, request: &Request) -> Vec<Reason> {
    let mut reasons = by_sight(posts);
    fold_copies(posts.post_ids, request.seed, &mut reasons);

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
fn fold_copies(post_ids: &[u64], seed: u64, reasons: &mut [Reason]) {
    let posts = Groups::of(post_ids, seed);
    if posts.count == post_ids.len() {
        return;
    }
    const NONE: usize = usize::MAX;
    let mut first_copy = vec![NONE; posts.count];
    for (index, &post) in posts.of_row.iter().enumerate() {
        let first = &mut first_copy[post as usize];
        if *first == NONE {
            *first = index;
            continue;
        }
        if reasons[index] == Reason::Seen {
            reasons[*first] = Reason::Seen;
        }
        reasons[index] = Reason::Copy;
    }
}
