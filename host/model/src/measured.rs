//! Measurements of a policy's cost that admission makes and the audit log keeps.

use crate::artifact::{PerStage, Stage};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Upper bound of the fuel that a core spends per millisecond in a policy. Measured rates are
/// 0.4 to 3 million in compiled Rust (the more memory it touches, the lower), 2 to 4 million in
/// Python and 7 to 11 million in JavaScript.
///
/// A policy that needs more fuel than its deadline allows at this rate is too slow on every
/// machine. It is refused with the same message on an author's laptop and on a busy host. A
/// stricter rate would refuse good policies in one language in order to find slow ones in
/// another. The clock decides about the rest.
pub const FUEL_PER_MS: u64 = 10_000_000;

/// Measured cost of a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Record {
    /// Fuel of the three stages together for the maximum number of candidates of a request
    /// (1,100).
    pub fuel: u64,
    /// Fuel that fits into the policy's deadline on the fastest core.
    pub fuel_allowed: u64,
    #[schema(value_type = Object)]
    pub stages: PerStage<StageRecord>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StageRecord {
    /// Resource class: standard or large.
    #[schema(value_type = String)]
    pub class: Cow<'static, str>,
    /// Size of the module.
    pub module_bytes: u64,
    /// Compile time on this host; null if the module was compiled before.
    pub compile_ms: Option<u64>,
    pub fuel: Vec<FuelAt>,
    /// The exponent k of fuel ~ candidatesᵏ between 1,100 and 5,000: 1 is linear, 2 is
    /// quadratic.
    pub growth: f64,
    /// Maximum linear memory, measured with 5,000 candidates.
    pub memory_bytes: u64,
    /// The best of ten calls with 1,100 candidates on this host, with the instance mode of the
    /// policy.
    pub time_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
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

/// Returns the exponent between two measurements.
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
