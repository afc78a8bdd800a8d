//! Experiment definitions as they are PUT, and the rules for changing one.

use super::assignment::{BucketRange, bucket_ranges};
use crate::artifact::PerStage;
use crate::artifact::{PolicyRef, remove_negative_zero};
use crate::invalid_field::InvalidField;
use crate::text::{DESCRIPTION, KEY, TextKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const VARIATIONS_MAX: usize = 100;
/// Most viewers that one experiment may force into a variation.
const OVERRIDES_MAX: usize = 10_000;
/// Largest accepted difference of the weights' sum from 1. It only allows for rounding of
/// weights such as 0.333333.
const WEIGHT_SUM_TOLERANCE: f64 = 2e-6;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExperimentSpec {
    #[serde(default)]
    pub description: String,
    /// Seed of the hash. Default: the experiment's key.
    #[serde(default)]
    pub seed: Option<String>,
    #[serde(default = "hash_version_default")]
    pub hash_version: u32,
    #[serde(default = "coverage_default")]
    pub coverage: f64,
    #[serde(default = "cohort_default")]
    pub cohort: String,
    #[serde(default)]
    pub namespace: Option<Namespace>,
    #[serde(default)]
    pub priority: i64,
    /// Forced viewers: viewer id → variation key.
    #[serde(default)]
    pub overrides: BTreeMap<String, String>,
    pub variations: Vec<VariationSpec>,
}

fn hash_version_default() -> u32 {
    2
}

fn coverage_default() -> f64 {
    1.0
}

fn cohort_default() -> String {
    "all".to_owned()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    pub id: String,
    pub range: (f64, f64),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VariationSpec {
    pub key: String,
    pub weight: f64,
    #[schema(value_type = String, example = "baseline@1.0.0")]
    pub policy: PolicyRef,
    /// Parameter values by stage, which replace those of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<StageOverrides>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StageOverrides {
    pub dedup: BTreeMap<String, f64>,
    pub score: BTreeMap<String, f64>,
    pub saturation: BTreeMap<String, f64>,
}

impl From<StageOverrides> for PerStage<BTreeMap<String, f64>> {
    fn from(overrides: StageOverrides) -> Self {
        Self {
            dedup: overrides.dedup,
            score: overrides.score,
            saturation: overrides.saturation,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExperimentState {
    Draft,
    Running,
    Paused,
    Stopped,
}

impl ExperimentState {
    pub fn as_str(self) -> &'static str {
        match self {
            ExperimentState::Draft => "draft",
            ExperimentState::Running => "running",
            ExperimentState::Paused => "paused",
            ExperimentState::Stopped => "stopped",
        }
    }

    /// Returns true if the transition is allowed: draft → running ⇄ paused → stopped. A stop is
    /// a kill switch and is allowed from every state.
    pub fn may_become(self, next: ExperimentState) -> bool {
        use ExperimentState::{Draft, Paused, Running, Stopped};
        matches!(
            (self, next),
            (Draft | Paused, Running) | (Running, Paused) | (Draft | Running | Paused, Stopped)
        )
    }
}

impl ExperimentSpec {
    pub fn seed<'a>(&'a self, key: &'a str) -> &'a str {
        self.seed.as_deref().unwrap_or(key)
    }

    pub fn ranges(&self) -> Vec<BucketRange> {
        let weights: Vec<f64> = self
            .variations
            .iter()
            .map(|variation| variation.weight)
            .collect();
        bucket_ranges(self.variations.len(), self.coverage, &weights)
    }

    pub fn variation(&self, key: &str) -> Option<usize> {
        self.variations
            .iter()
            .position(|variation| variation.key == key)
    }

    /// Returns all mistakes that are visible in the spec itself. The registry checks that its
    /// policies and cohort exist.
    pub fn check(&self) -> Vec<InvalidField> {
        let mut errors = Vec::new();
        let mut refuse = |field: String, message: String| errors.push((field, message));
        for (field, text, kind) in self.texts() {
            if let Err(message) = kind.check(text) {
                refuse(field, message);
            }
        }
        if self.overrides.len() > OVERRIDES_MAX {
            refuse(
                "overrides".into(),
                format!("has more than {OVERRIDES_MAX} viewers"),
            );
            return errors;
        }
        if !(1..=2).contains(&self.hash_version) {
            refuse("hash_version".into(), "must be 1 or 2".into());
        }
        if !(0.0..=1.0).contains(&self.coverage) {
            refuse("coverage".into(), "must be within 0 … 1".into());
        }
        if let Some(Namespace {
            range: (start, end),
            ..
        }) = self.namespace
            && !(0.0 <= start && start < end && end <= 1.0)
        {
            refuse(
                "namespace.range".into(),
                "must be [start, end] with 0 ≤ start < end ≤ 1".into(),
            );
        }
        if !(1..=VARIATIONS_MAX).contains(&self.variations.len()) {
            refuse("variations".into(), format!("must be 1 … {VARIATIONS_MAX}"));
        }
        for (at, variation) in self.variations.iter().enumerate() {
            if variation.key.is_empty() {
                refuse(format!("variations[{at}].key"), "must not be empty".into());
            }
            if self.variations[..at]
                .iter()
                .any(|other| other.key == variation.key)
            {
                refuse(
                    format!("variations[{at}].key"),
                    format!("`{}` is used twice", variation.key),
                );
            }
            if !(0.0..=1.0).contains(&variation.weight) {
                refuse(
                    format!("variations[{at}].weight"),
                    "must be within 0 … 1".into(),
                );
            }
        }
        let sum: f64 = self
            .variations
            .iter()
            .map(|variation| variation.weight)
            .sum();
        if (sum - 1.0).abs() > WEIGHT_SUM_TOLERANCE {
            refuse(
                "variations".into(),
                format!("weights must sum to 1, but they sum to {sum}"),
            );
        }
        for (viewer, variation) in &self.overrides {
            if viewer.parse::<u64>().map(|id| id.to_string()).as_ref() != Ok(viewer) {
                refuse(format!("overrides.{viewer}"), "is not a viewer id".into());
            }
            if self.variation(variation).is_none() {
                refuse(
                    format!("overrides.{viewer}"),
                    format!("there is no variation `{variation}`"),
                );
            }
        }
        errors
    }

    /// Returns every text of the definition with its path. The texts that name something which
    /// exists elsewhere are not here, because what they name is checked.
    fn texts(&self) -> Vec<(String, &str, TextKind)> {
        let mut texts = vec![
            (
                "description".to_owned(),
                self.description.as_str(),
                DESCRIPTION,
            ),
            ("cohort".to_owned(), self.cohort.as_str(), KEY),
        ];
        let seed = self.seed.as_deref();
        texts.extend(seed.map(|seed| ("seed".to_owned(), seed, KEY)));
        let namespace = self.namespace.as_ref();
        texts.extend(namespace.map(|of| ("namespace.id".to_owned(), of.id.as_str(), KEY)));
        for (at, variation) in self.variations.iter().enumerate() {
            texts.push((format!("variations[{at}].key"), &variation.key, KEY));
        }
        texts
    }

    /// Returns the same experiment with 0 in place of every -0, as a policy that is published.
    #[must_use]
    pub fn without_negative_zero(mut self) -> Self {
        let params = self.variations.iter_mut().filter_map(|v| v.params.as_mut());
        for StageOverrides {
            dedup,
            score,
            saturation,
        } in params
        {
            for stage in [dedup, score, saturation] {
                stage.values_mut().for_each(remove_negative_zero);
            }
        }
        self
    }

    /// Returns true if this spec may replace `current` while viewers are being assigned. Only
    /// coverage may grow then.
    pub fn only_grows(&self, current: &ExperimentSpec) -> bool {
        self.coverage >= current.coverage
            && ExperimentSpec {
                coverage: current.coverage,
                ..self.clone()
            } == *current
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> ExperimentSpec {
        serde_json::from_value(json).unwrap()
    }

    fn two(weights: [f64; 2]) -> ExperimentSpec {
        spec(serde_json::json!({"variations": [
            {"key": "a", "weight": weights[0], "policy": "baseline@1.0.0"},
            {"key": "b", "weight": weights[1], "policy": "baseline@1.0.0"}]}))
    }

    #[test]
    fn weights_must_sum_to_one() {
        assert!(two([0.5, 0.5]).check().is_empty());
        assert_eq!(two([0.5, 0.4]).check()[0].0, "variations");
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let mut wrong = two([0.5, 0.5]);
        wrong.hash_version = 3;
        wrong.coverage = 1.5;
        wrong.variations[1].key = "a".into();
        wrong.overrides.insert("x".into(), "c".into());
        let fields: Vec<String> = wrong.check().into_iter().map(|(field, _)| field).collect();
        assert_eq!(
            fields,
            [
                "hash_version",
                "coverage",
                "variations[1].key",
                "overrides.x",
                "overrides.x"
            ]
        );
    }

    #[test]
    fn every_text_has_a_bound() {
        let mut long = two([0.5, 0.5]);
        long.description = "x".repeat(4_097);
        long.seed = Some("a\u{0}b".into());
        long.cohort = "c".repeat(101);
        long.namespace = Some(Namespace {
            id: "n".repeat(101),
            range: (0.0, 1.0),
        });
        long.variations[1].key = "v".repeat(101);
        let fields: Vec<String> = long.check().into_iter().map(|(field, _)| field).collect();
        let expected = [
            "description",
            "cohort",
            "seed",
            "namespace.id",
            "variations[1].key",
        ];
        assert_eq!(fields, expected);
        let mut many = two([0.5, 0.5]);
        many.overrides = (0..=10_000)
            .map(|id| (id.to_string(), "a".into()))
            .collect();
        assert_eq!(many.check()[0].0, "overrides");
    }

    #[test]
    fn while_running_only_coverage_may_grow() {
        let mut current = two([0.5, 0.5]);
        current.coverage = 0.5;
        let grown = ExperimentSpec {
            coverage: 0.7,
            ..current.clone()
        };
        assert!(grown.only_grows(&current));
        assert!(!current.only_grows(&grown));
        assert!(
            !ExperimentSpec {
                priority: 1,
                ..grown
            }
            .only_grows(&current)
        );
    }

    #[test]
    fn states_change_only_forwards_except_for_a_pause() {
        use ExperimentState::{Draft, Paused, Running, Stopped};
        let allowed = [
            (Draft, Running),
            (Running, Paused),
            (Paused, Running),
            (Draft, Stopped),
            (Running, Stopped),
            (Paused, Stopped),
        ];
        for from in [Draft, Running, Paused, Stopped] {
            for to in [Draft, Running, Paused, Stopped] {
                assert_eq!(
                    from.may_become(to),
                    allowed.contains(&(from, to)),
                    "{from:?} → {to:?}"
                );
            }
        }
    }
}
