//! Tests of the reported differences between rankings.

use super::*;
use crate::replay::record::tests::record;
use nova_model::artifact::Stage;
use nova_model::failure::FailureKind;
use nova_policy::compare::compare;

fn ranking(rows: &[u32], scores: &[f32]) -> Ranking {
    Ranking {
        rows: rows.to_vec(),
        scores: scores.to_vec(),
        ..Ranking::default()
    }
}

#[test]
fn one_different_bit_of_a_score_is_a_mismatch_with_its_position() {
    let record = record(3);
    let then = &record.answer;
    let same = ranking(&then.rows, &then.scores);
    assert_eq!(difference(&record, &Ok(same.clone())), None);
    let mut other = same;
    other.scores[1] = f32::from_bits(other.scores[1].to_bits() + 1);
    let told = difference(&record, &Ok(other)).unwrap_or_default();
    assert!(
        told.starts_with("position 1: post 2 scored 0.5 then"),
        "{told}"
    );
    let zeros = |zero: f32| ranking(&[0, 1, 2], &[zero; 3]);
    let mut record = record;
    record.answer.scores = vec![0.0; 3];
    assert!(difference(&record, &Ok(zeros(-0.0))).is_some());
    let failure = PolicyFailure::new(Stage::Score, FailureKind::Trap, "unreachable");
    assert!(difference(&record, &Err(failure)).is_some());
}

#[test]
fn the_most_moved_pages_come_first_across_workers() {
    let orders: [&[u32]; 4] = [&[0, 1, 2, 3], &[1, 0, 2, 3], &[3, 2, 1, 0], &[0, 1, 3, 2]];
    let mut tallies = [ContenderTally::new(), ContenderTally::new()];
    for (id, order) in orders.iter().enumerate() {
        let mut record = record(4);
        record.limit = 2;
        let other = ranking(order, &[0.0; 4]);
        let authors = &record.candidates.author_ids;
        let found = compare(authors, &record.answer.rows, order, 2);
        tallies[id % 2].compared(id as i64, &record, &other, &found);
    }
    let [mut all, other] = tallies;
    all.merge(other);
    let ids: Vec<i64> = all.most_moved.iter().map(|page| page.record).collect();
    // In record 2 the whole page changed; in record 1 two posts of the page changed places.
    // Changes below the page do not count.
    assert_eq!(ids, [2, 1]);
    let first = &all.most_moved[0];
    assert_eq!(
        (first.before[0].post_id, first.before[0].other_position),
        (1, Some(3))
    );
}
