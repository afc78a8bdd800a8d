use nova_policy_sdk::testing::Sample;
use proptest::prelude::*;
use seen_dedup::{Reason, dedup, describe, explain};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy)]
struct Candidate {
    post_id: u64,
    at_ms: u64,
    seen: bool,
}

fn unseen(post_id: u64) -> Candidate {
    Candidate {
        post_id,
        at_ms: post_id,
        seen: false,
    }
}

fn seen(post_id: u64, at_ms: u64) -> Candidate {
    Candidate {
        post_id,
        at_ms,
        seen: true,
    }
}

fn sample(candidates: &[Candidate], min_results: usize) -> Sample {
    let empty = Sample::new(describe()).param("min_results", min_results as f64);
    candidates.iter().fold(empty, |sample, c| {
        sample.post(
            c.post_id,
            1,
            c.at_ms,
            &[("seen", f32::from(u8::from(c.seen)))],
        )
    })
}

fn kept(candidates: &[Candidate], min_results: usize) -> Vec<u32> {
    sample(candidates, min_results).dedup(dedup)
}

#[test]
fn seen_posts_are_removed_while_enough_others_remain() {
    let candidates = [seen(1, 9), unseen(2), seen(3, 9), unseen(4)];
    assert_eq!(kept(&candidates, 2), [1, 3]);
}

#[test]
fn seen_posts_come_back_newest_first_and_the_order_of_the_input_stays() {
    let candidates = [seen(1, 100), seen(2, 300), unseen(3), seen(4, 200)];
    assert_eq!(kept(&candidates, 2), [1, 2]);
    assert_eq!(kept(&candidates, 3), [1, 2, 3]);
    assert_eq!(kept(&candidates, 50), [0, 1, 2, 3]);
}

#[test]
fn the_higher_id_comes_back_among_seen_posts_of_one_millisecond() {
    assert_eq!(kept(&[seen(8, 5), seen(9, 5), seen(7, 5)], 1), [1]);
}

#[test]
fn the_first_copy_of_a_post_stays() {
    assert_eq!(
        kept(&[unseen(5), unseen(6), unseen(5), unseen(6), unseen(5)], 1),
        [0, 1]
    );
}

#[test]
fn one_seen_copy_makes_all_copies_seen_at_any_position() {
    let (fresh, stale) = (unseen(5), seen(5, 5));
    assert_eq!(kept(&[fresh, stale, unseen(6)], 1), [2]);
    assert_eq!(kept(&[stale, fresh, unseen(6)], 1), [2]);
}

#[test]
fn copies_do_not_count_towards_min_results() {
    let candidates = [unseen(1), unseen(1), unseen(1), seen(2, 9)];
    assert_eq!(kept(&candidates, 2), [0, 3]);
}

#[test]
fn fifty_results_are_kept_by_default() {
    let candidates: Vec<_> = (1..=60).map(|id| seen(id, id)).collect();
    let by_default = candidates
        .iter()
        .fold(Sample::new(describe()), |sample, c| {
            sample.post(c.post_id, 1, c.at_ms, &[("seen", 1.0)])
        });
    assert_eq!(by_default.dedup(dedup), (10..60).collect::<Vec<u32>>());
}

#[test]
fn each_candidate_gets_its_reason() {
    let candidates = [seen(1, 100), seen(2, 300), unseen(3), unseen(3)];
    let reasons = [Reason::Seen, Reason::Returned, Reason::Fresh, Reason::Copy];
    assert_eq!(
        sample(&candidates, 2).dedup(explain),
        reasons.map(|reason| reason as u32)
    );
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let candidate = (1u64..40, 0u64..20, any::<bool>());
    let candidate = candidate.prop_map(|(post_id, at_ms, seen)| Candidate {
        post_id,
        at_ms,
        seen,
    });
    prop::collection::vec(candidate, 0..80)
}

proptest! {
    #[test]
    fn at_most_one_copy_is_kept_in_order_and_at_least_one_post(
        candidates in candidates(), min_results in 1usize..60,
    ) {
        let kept = kept(&candidates, min_results);
        prop_assert!(kept.is_sorted_by(|a, b| a < b), "order, or an index twice");
        let posts: BTreeSet<u64> = kept.iter().map(|&i| candidates[i as usize].post_id).collect();
        prop_assert_eq!(posts.len(), kept.len(), "two copies of a post");
        prop_assert_eq!(kept.is_empty(), candidates.is_empty());
    }

    /// Computes the rule in another way: by post instead of by candidate.
    #[test]
    fn unseen_posts_are_kept_and_the_newest_seen_ones_fill_up(
        candidates in candidates(), min_results in 1usize..60,
    ) {
        let mut posts: BTreeMap<u64, (usize, u64, bool)> = BTreeMap::new();
        for (index, c) in candidates.iter().enumerate() {
            let post = posts.entry(c.post_id).or_insert((index, c.at_ms, false));
            post.2 |= c.seen;
        }
        let mut wanted: Vec<usize> = posts.values().filter(|p| !p.2).map(|p| p.0).collect();
        let mut seen: Vec<_> = posts.iter().filter(|(_, p)| p.2).map(|(id, p)| (p.1, *id, p.0)).collect();
        seen.sort();
        while wanted.len() < min_results {
            let Some((.., index)) = seen.pop() else { break };
            wanted.push(index);
        }
        wanted.sort();
        let kept: Vec<usize> = kept(&candidates, min_results).into_iter().map(|i| i as usize).collect();
        prop_assert_eq!(kept, wanted);
    }
}
