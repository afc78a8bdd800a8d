use nova_policy_sdk::testing::Sample;
use proptest::prelude::*;
use std::cmp::Reverse;
use timeline_scorer::{describe, score};

fn scores(posts: &[(u64, u64)]) -> Vec<f32> {
    let empty = Sample::new(describe());
    let sample = posts
        .iter()
        .fold(empty, |sample, &(id, at_ms)| sample.post(id, 1, at_ms, &[]));
    sample.score(score)
}

#[test]
fn one_millisecond_decides_although_it_exceeds_f32_precision() {
    let at_ms = 1_700_000_000_000;
    assert_eq!(at_ms as f32, (at_ms + 1) as f32, "the premise of this test");
    let scores = scores(&[(1, at_ms + 1), (2, at_ms), (3, at_ms + 2)]);
    assert!(scores[2] > scores[0] && scores[0] > scores[1]);
}

#[test]
fn the_higher_id_is_newer_within_one_millisecond() {
    let scores = scores(&[(7, 5), (9, 5), (8, 5)]);
    assert!(scores[1] > scores[2] && scores[2] > scores[0]);
}

#[test]
fn without_candidates_there_are_no_scores() {
    assert!(scores(&[]).is_empty());
}

proptest! {
    #[test]
    fn sorting_by_score_is_sorting_by_time_then_id(
        times_ms in prop::collection::vec(0u64..50, 0..200), first_id in 1u64..1_000_000,
    ) {
        let posts: Vec<(u64, u64)> = (first_id..).zip(times_ms).collect();
        let scores = scores(&posts);
        let mut by_score: Vec<usize> = (0..posts.len()).collect();
        by_score.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let mut by_time: Vec<usize> = (0..posts.len()).collect();
        by_time.sort_by_key(|&i| Reverse((posts[i].1, posts[i].0)));
        prop_assert_eq!(by_score, by_time);
        prop_assert!(scores.iter().all(|score| score.is_finite()));
    }
}
