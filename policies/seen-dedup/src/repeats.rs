//! Detection of repeats: copies of another candidate, and posts that the viewer was shown.

use crate::{Columns, Params, Reason};
use nova_policy_sdk::{Groups, Request};
use std::cmp::Reverse;

/// Returns the indices to keep, in the order of the input.
pub fn keep(posts: &Columns<'_>, params: &Params, request: &Request) -> Vec<u32> {
    let reasons = reasons(posts, params, request);
    let kept = |reason: Reason| matches!(reason, Reason::Fresh | Reason::Returned);
    (0u32..)
        .zip(reasons)
        .filter(|&(_, reason)| kept(reason))
        .map(|(index, _)| index)
        .collect()
}

/// Returns the reason for keeping or removing each candidate.
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

/// Keeps the first copy of each post. It counts as seen if any copy does, because being seen is a
/// property of the post and must not depend on the order of its copies.
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
