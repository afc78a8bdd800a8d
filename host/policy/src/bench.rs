//! Benchmark of a policy against a baseline policy. The calls of both alternate in one run, so
//! that other work on the machine affects both.

use super::admission::golden::{CANDIDATES_MAX, Golden, OVERSIZE};
use super::admission::trial::Subject;
use super::engine::Engine;
use super::loaded::LoadedPolicy;
use super::meter::Used;
use super::module::{Module, ModuleError};
use nova_model::artifact::{InstanceMode, PerStage, Stage};
use nova_model::failure::PolicyFailure;
use nova_model::measured::{FuelAt, growth};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Sizes of the generated sets.
const SIZES: [usize; 6] = [100, 250, 500, CANDIDATES_MAX, 2_500, OVERSIZE];
/// Minimum ratio between the largest and the smallest set for which growth is reported. Over a
/// smaller range the growth says little.
const GROWTH_FACTOR_MIN: usize = 2;
const MODES: [InstanceMode; 2] = [InstanceMode::Fresh, InstanceMode::Reuse];
/// Number of calls before the timed ones. They warm up caches and branch predictors, and create
/// an instance that can be reused.
const WARM_UP_CALLS: usize = 5;
/// Time limit for one stage, size and instance mode. A slow policy is called less often.
const TIME_MAX: Duration = Duration::from_secs(2);
/// Fuel limit of a measured call. The call must end, but may miss its deadline.
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

/// Cost of one stage for one number of candidates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    pub candidates: usize,
    pub fuel: u64,
    pub memory_bytes: u64,
    pub fresh: Times,
    pub reuse: Times,
}

/// Costs of the same stage of two policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pair {
    pub policy: Cost,
    pub baseline: Cost,
}

/// Candidate sets to rank, from small to large.
#[derive(Debug)]
pub struct Sets {
    sets: Vec<Golden>,
    /// Index of the set whose stages are reported individually.
    main: usize,
    /// Indices of the two sets between which the growth is computed.
    growth: (usize, usize),
}

impl Sets {
    /// Generates sets that are the same on every machine. The main set has the maximum number of
    /// candidates of a feed.
    pub fn generated() -> Self {
        let sets = SIZES.map(|candidates| Golden::typical("", candidates));
        let main = SIZES.iter().position(|size| *size == CANDIDATES_MAX);
        let main = main.unwrap_or_default();
        Self {
            sets: sets.into(),
            main,
            growth: (main, SIZES.len() - 1),
        }
    }

    /// Selects a few recorded sets, from the smallest to the largest. The largest is the main
    /// set. Returns `None` if all sets are empty or there is none.
    pub fn recorded(mut sets: Vec<Golden>) -> Option<Self> {
        sets.retain(|golden| !golden.set.is_empty());
        sets.sort_by_key(|golden| golden.set.len());
        sets.dedup_by_key(|golden| golden.set.len());
        let last = sets.len().checked_sub(1)?;
        let steps = last.clamp(1, SIZES.len() - 1);
        let mut chosen: Vec<usize> = (0..=steps).map(|step| step * last / steps).collect();
        chosen.dedup();
        let sets: Vec<Golden> = chosen.into_iter().map(|at| sets[at].clone()).collect();
        let main = sets.len() - 1;
        Some(Self {
            sets,
            main,
            growth: (0, main),
        })
    }

    /// Returns the number of times that [`measure`] calls its `step`.
    pub fn steps(&self) -> usize {
        Stage::ALL.len() * self.sets.len()
    }

    fn candidates(&self, at: usize) -> usize {
        self.sets[at].set.len()
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Number of candidates of each set.
    pub candidates: Vec<usize>,
    /// Costs for each set, in the same order.
    pub sizes: Vec<PerStage<Pair>>,
    /// Index of the main set, whose stages are reported individually.
    pub main: usize,
    /// `None` if the sizes of the sets are too similar.
    pub growth: Option<Growth>,
}

/// Exponents of fuel between two numbers of candidates.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Growth {
    pub from: usize,
    pub to: usize,
    pub policy: f64,
    pub baseline: f64,
}

impl Pair {
    pub fn sides(&self) -> [&Cost; 2] {
        [&self.policy, &self.baseline]
    }
}

/// Returns the sum over the three stages.
pub fn total(stages: &PerStage<Pair>, of: impl Fn(&Pair) -> u64) -> u64 {
    Stage::ALL.iter().map(|stage| of(stages.get(*stage))).sum()
}

/// Measures both policies on every set. Calls `step` after each stage of each set,
/// [`Sets::steps`] times in all.
///
/// # Errors
/// Fails if a stage fails, because a policy that cannot rank cannot be measured.
pub fn measure(
    engine: &Engine,
    policy: &Measured<'_>,
    baseline: &Measured<'_>,
    sets: &Sets,
    calls: usize,
    step: impl Fn(),
) -> Result<Report, BenchError> {
    let mut sizes: Vec<PerStage<Pair>> = vec![PerStage::default(); sets.sets.len()];
    for stage in Stage::ALL {
        let metered = [policy, baseline].map(|side| engine.load_metered(side.bytes.get(stage)));
        let [one, other] = metered;
        let sides = [
            Side::new(policy, stage, one?),
            Side::new(baseline, stage, other?),
        ];
        for (golden, row) in sets.sets.iter().zip(&mut sizes) {
            *row.get_mut(stage) = measure_stage(&sides, golden, calls)?;
            step();
        }
    }
    Ok(Report {
        candidates: (0..sizes.len()).map(|at| sets.candidates(at)).collect(),
        growth: growth_between(sets, &sizes),
        sizes,
        main: sets.main,
    })
}

fn growth_between(sets: &Sets, sizes: &[PerStage<Pair>]) -> Option<Growth> {
    let (from, to) = sets.growth;
    let (fewer, more) = (sets.candidates(from), sets.candidates(to));
    if more < fewer * GROWTH_FACTOR_MIN {
        return None;
    }
    let exponent = |of: fn(&Pair) -> u64| {
        let fuel_at = |at: usize| FuelAt {
            candidates: sets.candidates(at),
            fuel: total(&sizes[at], of),
        };
        growth(fuel_at(from), fuel_at(to))
    };
    Some(Growth {
        from: fewer,
        to: more,
        policy: exponent(|pair| pair.policy.fuel),
        baseline: exponent(|pair| pair.baseline.fuel),
    })
}

/// One policy's module of a stage: the serving module and the metered one.
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
    golden: &Golden,
    calls: usize,
) -> Result<Pair, PolicyFailure> {
    let mut costs = [Cost::default(); 2];
    for (side, cost) in sides.iter().zip(&mut costs) {
        let used = side.used(golden)?;
        *cost = Cost {
            candidates: golden.set.len(),
            fuel: used.fuel,
            memory_bytes: used.memory_bytes,
            ..*cost
        };
    }
    for mode in MODES {
        let times = alternate(sides, mode, golden, calls)?;
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
    fn a_few_recorded_sets_are_chosen_from_the_smallest_to_the_largest() {
        let recorded = |sizes: &[usize]| {
            let sets = sizes.iter().map(|size| Golden::typical("", *size));
            Sets::recorded(sets.collect())
        };
        let sizes = |sets: &Sets| -> Vec<usize> {
            (0..sets.sets.len()).map(|at| sets.candidates(at)).collect()
        };
        let many: Vec<usize> = (1..=40).rev().collect();
        let sets = recorded(&many).map(|sets| (sizes(&sets), sets.main, sets.growth));
        assert_eq!(sets, Some((vec![1, 8, 16, 24, 32, 40], 5, (0, 5))));
        let one = recorded(&[7, 7, 0]).map(|sets| (sizes(&sets), sets.main));
        assert_eq!(one, Some((vec![7], 0)));
        assert!(recorded(&[0]).is_none());
    }

    #[test]
    fn quantiles_are_taken_from_the_sorted_times() {
        let mut taken: Vec<Duration> = (1..=100).rev().map(Duration::from_micros).collect();
        let times = times(&mut taken);
        assert_eq!((times.median_us, times.p99_us, times.calls), (51, 100, 100));
        assert_eq!(super::times(&mut []), Times::default());
    }
}
