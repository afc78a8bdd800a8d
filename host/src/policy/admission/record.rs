//! What admission measured, kept with whoever asks what a policy costs.

use crate::policy::artifact::{PerStage, Stage};
use serde::Serialize;

/// More than a core does in a millisecond of a policy: seen are 0.4 to 3 million in compiled Rust
/// (the less, the more memory it touches), 2 to 4 in Python and 7 to 11 in JavaScript.
///
/// So what needs more fuel than its deadline holds at this rate fits on no machine, and is refused
/// with the same words on an author's laptop and a busy host. A rate that judged closely would refuse
/// good policies of one language to catch slow ones of another; what remains is the clock's to judge.
pub const FUEL_PER_MS: u64 = 10_000_000;

/// A policy, measured.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Record {
    /// The three stages together over the most candidates that a request can have (1,100).
    pub fuel: u64,
    /// What the policy's deadline could hold on the fastest core.
    pub fuel_allowed: u64,
    #[schema(value_type = Object)]
    pub stages: PerStage<StageRecord>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, utoipa::ToSchema)]
pub struct StageRecord {
    /// Of resources: standard or large.
    pub class: &'static str,
    /// Of the module.
    pub module_bytes: u64,
    /// On this host; null when it was compiled before.
    pub compile_ms: Option<u64>,
    pub fuel: Vec<FuelAt>,
    /// The exponent k of fuel ~ candidatesᵏ between 1,100 and 5,000: 1 is linear, 2 is quadratic.
    pub growth: f64,
    /// Linear memory at its largest, over 5,000 candidates.
    pub memory_bytes: u64,
    /// The best of a few calls over 1,100 candidates on this host, as the policy asks for instances.
    pub time_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FuelAt {
    pub candidates: usize,
    pub fuel: u64,
}

impl StageRecord {
    pub fn fuel_at(&self, candidates: usize) -> u64 {
        let at = self.fuel.iter().find(|at| at.candidates == candidates);
        at.map_or(0, |at| at.fuel)
    }
}

/// The exponent between two measurements of one curve.
pub fn growth(less: FuelAt, more: FuelAt) -> f64 {
    let ratio = |a: f64, b: f64| (b / a.max(1.0)).max(f64::MIN_POSITIVE).ln();
    ratio(less.fuel as f64, more.fuel as f64)
        / ratio(less.candidates as f64, more.candidates as f64)
}

impl Record {
    pub fn stage(&self, stage: Stage) -> &StageRecord {
        self.stages.get(stage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_the_exponent() {
        let at = |candidates, fuel| FuelAt { candidates, fuel };
        assert!((growth(at(1_000, 5_000), at(5_000, 25_000)) - 1.0).abs() < 1e-9);
        assert!((growth(at(1_000, 1_000_000), at(5_000, 25_000_000)) - 2.0).abs() < 1e-9);
        assert!(growth(at(1, 0), at(2, 0)).is_finite());
    }
}
