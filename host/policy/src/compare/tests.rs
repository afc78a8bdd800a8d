//! Tests of comparisons against direct implementations of the definitions.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

/// τ-a by its definition: concordant minus discordant pairs over all pairs.
fn naive_tau(before: &[u32], after: &[u32]) -> Option<f64> {
    let place = |order: &[u32], row| order.iter().position(|&other| other == row);
    let common: Vec<(usize, usize)> = before
        .iter()
        .filter_map(|&row| Some((place(before, row)?, place(after, row)?)))
        .collect();
    let (mut sum, mut pairs) = (0_i64, 0_i64);
    for (at, a) in common.iter().enumerate() {
        for b in &common[at + 1..] {
            pairs += 1;
            sum += if (a.0 < b.0) == (a.1 < b.1) { 1 } else { -1 };
        }
    }
    (pairs > 0).then(|| sum as f64 / pairs as f64)
}

fn naive_concentration(authors: &[u64], page: &[u32]) -> Concentration {
    let of: Vec<u64> = page.iter().map(|&row| authors[row as usize]).collect();
    let distinct: HashSet<u64> = of.iter().copied().collect();
    let shares: Vec<f64> = distinct
        .iter()
        .map(|author| of.iter().filter(|other| *other == author).count() as f64)
        .map(|posts| posts / of.len() as f64)
        .collect();
    Concentration {
        distinct_authors: distinct.len() as u32,
        max_share: shares.iter().copied().fold(0.0, f64::max),
        herfindahl: shares.iter().map(|share| share * share).sum(),
    }
}

/// Authors of some candidates, and two orders that each contain some of them.
fn two_orders() -> impl Strategy<Value = (Vec<u64>, Vec<u32>, Vec<u32>)> {
    (0_usize..40).prop_flat_map(|rows| {
        let order = || {
            (
                Just((0..rows as u32).collect::<Vec<u32>>()).prop_shuffle(),
                0..=rows,
            )
                .prop_map(|(mut order, kept)| {
                    order.truncate(kept);
                    order
                })
        };
        (prop::collection::vec(1_u64..6, rows), order(), order())
    })
}

proptest! {
    #[test]
    fn a_comparison_agrees_with_the_definitions((authors, before, after) in two_orders(), page in 0_usize..50) {
        let comparison = compare(&authors, &before, &after, page);
        let (page_before, page_after) = (first(&before, page), first(&after, page));
        let set = |page: &[u32]| page.iter().copied().collect::<HashSet<u32>>();
        let common = set(page_before).intersection(&set(page_after)).count();
        let longer = page_before.len().max(page_after.len());
        let overlap = if longer == 0 { 1.0 } else { common as f64 / longer as f64 };
        prop_assert_eq!(comparison.overlap, overlap);
        prop_assert_eq!(comparison.entered as usize, page_after.len() - common);
        prop_assert_eq!(comparison.left as usize, page_before.len() - common);
        let stayed = page_before.iter().zip(page_after).filter(|(a, b)| a == b).count();
        prop_assert_eq!(comparison.moved as usize, common - stayed);
        match (comparison.kendall_tau, naive_tau(&before, &after)) {
            (Some(tau), Some(naive)) => prop_assert!((tau - naive).abs() < 1e-12, "{tau} {naive}"),
            (tau, naive) => prop_assert_eq!(tau, naive),
        }
        for (seen, page) in [(comparison.authors_before, page_before), (comparison.authors_after, page_after)] {
            let naive = naive_concentration(&authors, page);
            prop_assert_eq!((seen.distinct_authors, seen.max_share), (naive.distinct_authors, naive.max_share));
            prop_assert!((seen.herfindahl - naive.herfindahl).abs() < 1e-12);
        }
    }

    #[test]
    fn a_window_keeps_the_latest_values(values in prop::collection::vec(-1e6_f64..1e6, 0..60), window in 1_usize..20) {
        let mut samples = Samples::latest(window);
        values.iter().for_each(|value| samples.push(*value));
        let mut latest = values[values.len().saturating_sub(window)..].to_vec();
        latest.sort_unstable_by(f64::total_cmp);
        let mut kept = samples.values().to_vec();
        kept.sort_unstable_by(f64::total_cmp);
        prop_assert_eq!(kept, latest);
    }
}

#[test]
fn an_order_has_tau_1_against_itself_and_minus_1_against_its_reverse() {
    let authors = [1, 1, 2, 3];
    let (order, reverse) = ([0, 1, 2, 3], [3, 2, 1, 0]);
    let same = compare(&authors, &order, &order, 2);
    assert_eq!(
        (same.overlap, same.kendall_tau, same.moved, same.entered),
        (1.0, Some(1.0), 0, 0)
    );
    assert_eq!(same.authors_before.herfindahl, 1.0);
    let turned = compare(&authors, &order, &reverse, 2);
    assert_eq!(
        (turned.overlap, turned.kendall_tau, turned.left),
        (0.0, Some(-1.0), 2)
    );
    assert_eq!(turned.authors_after.herfindahl, 0.5);
}

#[test]
fn quantiles_are_measured_values() {
    let mut samples = Samples::latest(1_000);
    assert_eq!(samples.distribution(), None);
    (1..=100).for_each(|value| samples.push(f64::from(value)));
    let d = samples.distribution().unwrap();
    assert_eq!(
        [d.min, d.p05, d.p50, d.p95, d.p99, d.max, d.mean],
        [1.0, 5.0, 50.0, 95.0, 99.0, 100.0, 50.5]
    );
}
