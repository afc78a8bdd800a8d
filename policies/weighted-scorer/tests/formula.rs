use nova_policy_sdk::Parameter;
use nova_policy_sdk::testing::Sample;
use proptest::prelude::*;
use weighted_scorer::{describe, explain, score};

const FEATURES: [&str; 6] = [
    "age_hours",
    "likes",
    "comments",
    "shares",
    "exposures",
    "affinity",
];

fn row(values: [f32; 6]) -> Vec<(&'static str, f32)> {
    FEATURES.into_iter().zip(values).collect()
}

fn sample(values: [f32; 6]) -> Sample {
    Sample::new(describe()).row(&row(values))
}

/// The formula as printed in the contract, with its default parameters.
fn contract(values: [f32; 6]) -> f64 {
    let [age_hours, likes, comments, shares, exposures, affinity] = values.map(f64::from);
    0.30 * (-0.1 * age_hours).exp()
        + 0.40 * (1.0 + (likes + 2.0 * comments + 3.0 * shares) / exposures.max(1.0)).ln()
        + 0.30 * (1.0 + affinity).ln()
}

fn assert_close(found: f32, wanted: f64) {
    let found = f64::from(found);
    assert!(
        (found - wanted).abs() <= 1e-6 * wanted.abs().max(1e-30),
        "{found} is not {wanted}"
    );
}

#[test]
fn freshness_is_1_for_a_new_post_and_0_0907_after_a_day() {
    let freshness = |age_hours| explain_one(age_hours)[0] / 0.30;
    assert_close(freshness(0.0), 1.0);
    assert!((freshness(24.0) - 0.0907).abs() < 5e-5);
}

fn explain_one(age_hours: f32) -> Vec<f32> {
    sample([age_hours, 0.0, 0.0, 0.0, 0.0, 0.0]).score(explain)
}

#[test]
fn likes_count_once_comments_twice_shares_three_times_per_exposure() {
    let engagement = |likes, comments, shares, exposures| {
        sample([0.0, likes, comments, shares, exposures, 0.0]).score(explain)[1]
    };
    assert_eq!(
        engagement(6.0, 0.0, 0.0, 1.0),
        engagement(0.0, 3.0, 0.0, 1.0)
    );
    assert_eq!(
        engagement(6.0, 0.0, 0.0, 1.0),
        engagement(0.0, 0.0, 2.0, 1.0)
    );
    assert_eq!(
        engagement(6.0, 0.0, 0.0, 1.0),
        engagement(60.0, 0.0, 0.0, 10.0)
    );
    assert_close(engagement(10.0, 5.0, 2.0, 0.0), 0.40 * 27f64.ln());
}

#[test]
fn negative_ages_and_counts_count_as_zero() {
    let negative = sample([-5.0, -1.0, -9.0, -2.0, -7.0, -3.0]).score(score);
    assert_eq!(negative, sample([0.0; 6]).score(score));
}

#[test]
fn weights_allow_zero_and_one_but_not_absurd_values() {
    for Parameter {
        name,
        min,
        max,
        default,
        doc,
    } in describe().parameters
    {
        assert!(
            *min <= *default && *default <= *max && !doc.is_empty(),
            "{name}"
        );
        assert!(*max < 1e300, "{name} takes absurd values");
        if name.starts_with("w_") {
            assert!(*min == 0.0 && *max >= 1.0, "{name}");
        }
    }
}

#[test]
fn a_batch_scores_each_candidate_by_its_own_features() {
    let rows = [
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],
        [24.0; 6],
    ];
    let batch = rows.iter().fold(Sample::new(describe()), |batch, &values| {
        batch.row(&row(values))
    });
    let scores = batch.score(score);
    assert_eq!(scores.len(), 3);
    for (found, values) in scores.into_iter().zip(rows) {
        assert_close(found, contract(values));
    }
}

fn params_in_range() -> impl Strategy<Value = Vec<(&'static str, f64)>> {
    let ranges = describe().parameters.iter().map(|p| {
        let value = prop_oneof![Just(p.min), Just(p.max), p.min..=p.max];
        value.prop_map(|value| (p.name, value))
    });
    ranges.collect::<Vec<_>>()
}

fn any_finite() -> impl Strategy<Value = f32> {
    prop_oneof![
        any::<f32>().prop_filter("finite", |value| value.is_finite()),
        Just(f32::MAX),
        Just(f32::MIN),
    ]
}

proptest! {
    #[test]
    fn scores_match_the_contracts_formula_in_64_bit(
        age_hours in 0f32..2160.0, counts in prop::array::uniform5(0u32..10_000_000),
    ) {
        let [likes, comments, shares, exposures, affinity] = counts.map(|count| count as f32);
        let values = [age_hours, likes, comments, shares, exposures, affinity];
        assert_close(sample(values).score(score)[0], contract(values));
    }

    #[test]
    fn scores_are_finite_for_any_finite_features_and_any_parameters_in_range(
        values in prop::array::uniform6(any_finite()), params in params_in_range(),
    ) {
        let sample = params.iter().fold(sample(values), |sample, (name, value)| sample.param(name, *value));
        prop_assert!(sample.score(score)[0].is_finite());
        prop_assert!(sample.score(explain).iter().all(|part| part.is_finite()));
    }

    #[test]
    fn the_explained_parts_add_up_to_the_score(values in prop::array::uniform6(0f32..1e6)) {
        let parts: f64 = sample(values).score(explain).into_iter().map(f64::from).sum();
        assert_close(sample(values).score(score)[0], parts);
    }
}
