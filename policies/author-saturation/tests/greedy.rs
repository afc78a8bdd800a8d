use author_saturation::{Reason, describe, explain, saturate};
use nova_policy_sdk::testing::Sample;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
struct Rules {
    top_k: usize,
    max_in_top: usize,
    min_distance: usize,
}

const SHIPPED: Rules = Rules {
    top_k: 5,
    max_in_top: 1,
    min_distance: 3,
};

fn sample(authors: &[u64], rules: Rules) -> Sample {
    let empty = Sample::new(describe())
        .param("top_k", rules.top_k as f64)
        .param("max_in_top", rules.max_in_top as f64)
        .param("min_distance", rules.min_distance as f64);
    (1..).zip(authors).fold(empty, |sample, (id, &author)| {
        sample.post(id, author, 0, &[])
    })
}

fn order(authors: &[u64], rules: Rules) -> Vec<u32> {
    sample(authors, rules).saturate(saturate)
}

/// Implements the rule literally, one sentence after the other, without regard to cost. Also
/// returns what each position required: the distance kept, and whether the top rule held.
fn model(authors: &[u64], rules: Rules) -> (Vec<u32>, Vec<(usize, bool)>) {
    let mut order: Vec<u32> = Vec::new();
    let mut taken = Vec::new();
    while order.len() < authors.len() {
        let position = order.len();
        let fits = |index: u32, distance: usize, top: bool| {
            let same = |&&at: &&u32| authors[at as usize] == authors[index as usize];
            let near = order[position.saturating_sub(distance - 1)..]
                .iter()
                .any(|at| same(&at));
            let in_top = order.iter().take(rules.top_k).filter(same).count();
            !(near || top && position < rules.top_k && in_top >= rules.max_in_top)
        };
        let remaining = || (0..authors.len() as u32).filter(|index| !order.contains(index));
        let relaxations = (1..=rules.min_distance)
            .rev()
            .map(|d| (d, true))
            .chain([(1, false)]);
        let (index, relaxation) = relaxations
            .filter_map(|r| {
                remaining()
                    .find(|&index| fits(index, r.0, r.1))
                    .map(|index| (index, r))
            })
            .next()
            .expect("nothing is forbidden in the end");
        order.push(index);
        taken.push(relaxation);
    }
    (order, taken)
}

#[test]
fn different_authors_keep_their_ranks() {
    assert_eq!(order(&[1, 2, 3, 4, 5, 6], SHIPPED), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_second_post_of_an_author_waits_until_the_top_is_full() {
    assert_eq!(
        order(&[1, 1, 2, 3, 4, 5, 6], SHIPPED),
        [0, 2, 3, 4, 5, 1, 6]
    );
}

#[test]
fn below_the_top_posts_of_an_author_are_three_positions_apart() {
    let rules = Rules {
        top_k: 0,
        ..SHIPPED
    };
    assert_eq!(order(&[1, 1, 1, 2, 3, 4, 5], rules), [0, 3, 4, 1, 5, 6, 2]);
}

#[test]
fn the_distance_is_relaxed_before_the_top_rule() {
    // Two authors share five top positions. Each gets its one top post; then the top rule has to
    // be dropped, and the distance with it. Author 1 must not get position 1, though its post
    // ranks there.
    assert_eq!(order(&[1, 1, 1, 2, 2], SHIPPED), [0, 3, 1, 2, 4]);
    // If each may have two top posts, distance 2 is enough for positions 2 and 3.
    let two_each = Rules {
        max_in_top: 2,
        ..SHIPPED
    };
    assert_eq!(order(&[1, 1, 1, 2, 2], two_each), [0, 3, 1, 4, 2]);
}

#[test]
fn the_distance_is_lowered_one_by_one() {
    // At position 2, no author fits at distance 3. Author 1 fits at distance 2; author 2, the
    // better ranked, would need distance 1.
    let rules = Rules {
        top_k: 0,
        ..SHIPPED
    };
    assert_eq!(order(&[1, 2, 2, 1], rules), [0, 1, 3, 2]);
}

#[test]
fn posts_of_a_single_author_keep_their_ranks() {
    assert_eq!(order(&[7; 9], SHIPPED), (0..9).collect::<Vec<u32>>());
}

#[test]
fn without_posts_the_order_is_empty() {
    assert!(order(&[], SHIPPED).is_empty());
}

#[test]
fn each_post_gets_the_reason_for_its_position() {
    use Reason::{Deferred, DistanceRelaxed, MovedUp, Stayed, TopRelaxed};
    let reasons = |authors: &[u64], rules| sample(authors, rules).saturate(explain);
    let codes = |reasons: &[Reason]| {
        reasons
            .iter()
            .map(|&reason| reason as u32)
            .collect::<Vec<_>>()
    };
    let rules = Rules {
        top_k: 2,
        ..SHIPPED
    };
    assert_eq!(
        reasons(&[1, 1, 2, 3], rules),
        codes(&[Stayed, Deferred, MovedUp, MovedUp])
    );
    assert_eq!(reasons(&[1, 1], rules), codes(&[Stayed, TopRelaxed]));
    let rules = Rules {
        top_k: 0,
        ..SHIPPED
    };
    assert_eq!(reasons(&[1, 1], rules), codes(&[Stayed, DistanceRelaxed]));
}

#[test]
fn five_thousand_posts_of_few_authors_take_milliseconds() {
    // The bound is loose, to allow for slow machines and unoptimised builds. A quadratic rule
    // needs seconds.
    let authors: Vec<u64> = (0..5000).map(|i| i * i % 7).collect();
    let sample = sample(
        &authors,
        Rules {
            top_k: 1000,
            max_in_top: 1,
            min_distance: 100,
        },
    );
    let start = std::time::Instant::now();
    assert_eq!(sample.saturate(saturate).len(), 5000);
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
}

fn rules() -> impl Strategy<Value = Rules> {
    let rules = (0usize..12, 1usize..4, 1usize..7);
    let rules = rules.prop_map(|(top_k, max_in_top, min_distance)| Rules {
        top_k,
        max_in_top,
        min_distance,
    });
    prop_oneof![Just(SHIPPED), rules]
}

/// Generates cases from one author who wrote everything to many authors who rarely wrote twice.
fn authors() -> impl Strategy<Value = Vec<u64>> {
    (1u64..30).prop_flat_map(|authors| prop::collection::vec(1..=authors, 0..60))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_order_equals_that_of_the_literal_rule(authors in authors(), rules in rules()) {
        prop_assert_eq!(order(&authors, rules), model(&authors, rules).0);
    }

    #[test]
    fn every_post_is_shown_once(authors in authors(), rules in rules()) {
        let mut order = order(&authors, rules);
        order.sort();
        prop_assert_eq!(order, (0..authors.len() as u32).collect::<Vec<_>>());
    }

    #[test]
    fn a_rule_is_relaxed_only_if_no_remaining_post_fits(authors in authors(), rules in rules()) {
        let (order, taken) = model(&authors, rules);
        let reasons = sample(&authors, rules).saturate(explain);
        for (index, (distance, top)) in order.into_iter().zip(taken) {
            let reason = reasons[index as usize];
            let relaxed = (reason == Reason::DistanceRelaxed as u32, reason == Reason::TopRelaxed as u32);
            prop_assert_eq!(relaxed, (top && distance < rules.min_distance, !top));
        }
    }

    #[test]
    fn posts_of_one_author_keep_their_order(authors in authors(), rules in rules()) {
        let order = order(&authors, rules);
        for author in 1..30 {
            let of_author = order.iter().filter(|&&index| authors[index as usize] == author);
            prop_assert!(of_author.is_sorted());
        }
    }
}
