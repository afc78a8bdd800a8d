//! What a policy costs beside another one, measured in one run: their calls alternate, so whatever
//! else the machine does happens to both.

use super::admission::golden::{CANDIDATES_MAX, Golden};
use super::admission::record::{FuelAt, growth};
use super::admission::trial::Subject;
use super::artifact::{InstanceMode, PerStage, Stage};
use super::engine::Engine;
use super::failure::PolicyFailure;
use super::loaded::LoadedPolicy;
use super::meter::Used;
use super::module::{Module, ModuleError};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Of the growth curve.
pub const SIZES: [usize; 6] = [100, 250, 500, CANDIDATES_MAX, 2_500, 5_000];
const MODES: [InstanceMode; 2] = [InstanceMode::Fresh, InstanceMode::Reuse];
/// Before anything is timed: caches and branch predictors settle, an instance is there to be reused.
const WARM_UP_CALLS: usize = 5;
/// Of one stage, size and way of instances. A slow policy is called less often.
const TIME_MAX: Duration = Duration::from_secs(2);
/// A call that is measured must end, but may miss its deadline.
const FUEL_MAX: u64 = 50_000_000_000;

/// A policy with the bytes of its modules.
#[derive(Debug)]
pub struct Measured<'a> {
    pub policy: &'a LoadedPolicy,
    pub bytes: PerStage<&'a [u8]>,
}

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{0}")]
    Failed(#[from] PolicyFailure),
    #[error("{0}")]
    Module(#[from] ModuleError),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    pub median_us: u64,
    pub p99_us: u64,
    pub calls: usize,
}

/// One stage over one number of candidates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    pub candidates: usize,
    pub fuel: u64,
    pub memory_bytes: u64,
    pub fresh: Times,
    pub reuse: Times,
}

/// The same stage of two policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pair {
    pub policy: Cost,
    pub baseline: Cost,
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// For each of [`SIZES`].
    pub sizes: Vec<PerStage<Pair>>,
    /// The exponents of fuel between 1,100 and 5,000 candidates.
    pub growth: f64,
    pub baseline_growth: f64,
}

impl Pair {
    pub fn sides(&self) -> [&Cost; 2] {
        [&self.policy, &self.baseline]
    }
}

impl Report {
    /// Over the most candidates that a request can have.
    pub fn at_cap(&self) -> Option<&PerStage<Pair>> {
        let at = SIZES.iter().position(|size| *size == CANDIDATES_MAX)?;
        self.sizes.get(at)
    }
}

/// The three stages together.
pub fn total(stages: &PerStage<Pair>, of: impl Fn(&Pair) -> u64) -> u64 {
    Stage::ALL.iter().map(|stage| of(stages.get(*stage))).sum()
}

/// Measures both, calling `step` after each stage of each size: there are [`steps`].
///
/// # Errors
/// When a stage fails: what cannot rank cannot be measured.
pub fn measure(
    engine: &Engine,
    policy: &Measured<'_>,
    baseline: &Measured<'_>,
    calls: usize,
    step: impl Fn(),
) -> Result<Report, BenchError> {
    let mut sizes: Vec<PerStage<Pair>> = vec![PerStage::default(); SIZES.len()];
    for stage in Stage::ALL {
        let metered = [policy, baseline].map(|side| engine.load_metered(side.bytes.get(stage)));
        let [one, other] = metered;
        let sides = [
            Side::new(policy, stage, one?),
            Side::new(baseline, stage, other?),
        ];
        for (candidates, row) in SIZES.into_iter().zip(&mut sizes) {
            *row.get_mut(stage) = measure_stage(&sides, candidates, calls)?;
            step();
        }
    }
    let fuel = |candidates: usize, of: fn(&Pair) -> u64| {
        let at = SIZES.iter().position(|size| *size == candidates);
        let fuel = at.map_or(0, |at| total(&sizes[at], of));
        FuelAt { candidates, fuel }
    };
    let exponent = |of: fn(&Pair) -> u64| growth(fuel(CANDIDATES_MAX, of), fuel(5_000, of));
    let growth = exponent(|pair| pair.policy.fuel);
    let baseline_growth = exponent(|pair| pair.baseline.fuel);
    Ok(Report {
        sizes,
        growth,
        baseline_growth,
    })
}

/// How often `measure` calls `step`.
pub const fn steps() -> usize {
    Stage::ALL.len() * SIZES.len()
}

/// One policy's module of a stage, as it serves and as it is metered.
struct Side<'a> {
    subject: Subject<'a>,
    metered: Module,
}

impl<'a> Side<'a> {
    fn new(measured: &Measured<'a>, stage: Stage, metered: Module) -> Self {
        let policy = measured.policy;
        Self {
            subject: Subject {
                stage,
                module: policy.modules.get(stage),
                bytes: measured.bytes.get(stage),
                params: policy.params(stage),
                limits: policy.spec.limits,
            },
            metered,
        }
    }

    fn used(&self, golden: &Golden) -> Result<Used, PolicyFailure> {
        let subject = Subject {
            module: &self.metered,
            ..self.subject
        };
        let none = Used {
            fuel: 0,
            memory_bytes: 0,
        };
        let Some(meter) = self.metered.meter() else {
            return Ok(none);
        };
        meter.set_fuel_max(FUEL_MAX);
        subject.call(InstanceMode::Fresh, golden, subject.params)?;
        Ok(meter.used())
    }

    fn time(&self, mode: InstanceMode, golden: &Golden) -> Result<Duration, PolicyFailure> {
        let started = Instant::now();
        self.subject.call(mode, golden, self.subject.params)?;
        Ok(started.elapsed())
    }
}

fn measure_stage(
    sides: &[Side<'_>; 2],
    candidates: usize,
    calls: usize,
) -> Result<Pair, PolicyFailure> {
    let golden = Golden::typical("", candidates);
    let mut costs = [Cost::default(); 2];
    for (side, cost) in sides.iter().zip(&mut costs) {
        let used = side.used(&golden)?;
        *cost = Cost {
            candidates,
            fuel: used.fuel,
            memory_bytes: used.memory_bytes,
            ..*cost
        };
    }
    for mode in MODES {
        let times = alternate(sides, mode, &golden, calls)?;
        for (cost, times) in costs.iter_mut().zip(times) {
            match mode {
                InstanceMode::Fresh => cost.fresh = times,
                InstanceMode::Reuse => cost.reuse = times,
            }
        }
    }
    let [policy, baseline] = costs;
    Ok(Pair { policy, baseline })
}

fn alternate(
    sides: &[Side<'_>; 2],
    mode: InstanceMode,
    golden: &Golden,
    calls: usize,
) -> Result<[Times; 2], PolicyFailure> {
    let mut taken = [Vec::new(), Vec::new()];
    let started = Instant::now();
    for call in 0..calls + WARM_UP_CALLS {
        for (side, taken) in sides.iter().zip(&mut taken) {
            let took = side.time(mode, golden)?;
            if call >= WARM_UP_CALLS {
                taken.push(took);
            }
        }
        if call > WARM_UP_CALLS && started.elapsed() > TIME_MAX {
            break;
        }
    }
    Ok(taken.map(|mut taken| times(&mut taken)))
}

fn times(taken: &mut [Duration]) -> Times {
    taken.sort_unstable();
    let quantile = |per_cent: usize| {
        let at = (taken.len() * per_cent / 100).min(taken.len().saturating_sub(1));
        taken.get(at).map_or(0, |took| took.as_micros() as u64)
    };
    Times {
        median_us: quantile(50),
        p99_us: quantile(99),
        calls: taken.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let mut taken: Vec<Duration> = (1..=100).rev().map(Duration::from_micros).collect();
        let times = times(&mut taken);
        assert_eq!((times.median_us, times.p99_us, times.calls), (51, 100, 100));
        assert_eq!(super::times(&mut []), Times::default());
    }
}
