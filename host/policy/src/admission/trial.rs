//! Trial of one stage on the golden sets. It checks the answers and measures the cost.

use super::golden::{self, CANDIDATES_MAX, Golden, OVERSIZE};
use crate::engine::Engine;
use crate::memory::Claim;
use crate::meter::Used;
use crate::module::{CallBudget, Module, StageCall};
use crate::ranking::{Columns, check_kept, check_permutation, check_scores};
use crate::reason::Reason;
use nova_model::artifact::{Digest, InstanceMode, Limits, Stage};
use nova_model::failure::{FailureKind, PolicyFailure};
use nova_model::measured::{FUEL_PER_MS, FuelAt, StageRecord, growth};
use std::time::{Duration, Instant};

/// Time limit of one call of the trial. No viewer waits for them, so they only need some limit.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);
/// Sizes at which fuel is measured, and the allowed multiple of the fuel of the policy's
/// deadline. A request never has 5,000 candidates, and quadratic work over them is 21 times that
/// over 1,100.
const MEASURED: [(usize, u64); 3] = [(100, 1), (CANDIDATES_MAX, 1), (OVERSIZE, 25)];
/// Time limit for the golden sets and the ends of the parameter ranges together. Each call may
/// be slow, and a module may declare hundreds of parameters.
const TRIAL_TIME_MAX: Duration = Duration::from_secs(120);
/// Number of timed calls. The best time shows what the machine can do. There are ten because a
/// busy machine interrupts some calls, but hardly all of them.
const TIMED_CALLS: usize = 10;
/// Maximum number of reported ends of parameter ranges. A module may declare hundreds.
const RANGES_REPORTED: usize = 10;

/// A stage of a policy that is to be published.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub stage: Stage,
    pub module: &'a Module,
    pub bytes: &'a [u8],
    /// Parameter values in the order in which the module declares them.
    pub params: &'a [f64],
    pub limits: Limits,
}

/// The cost of a stage and all failures found.
#[derive(Debug, Default)]
pub struct Tried {
    pub record: StageRecord,
    pub reasons: Vec<Reason>,
}

/// Tries a stage on all golden sets, unless the same stage with the same values passed before.
pub fn try_stage(engine: &Engine, subject: Subject<'_>) -> Tried {
    let key = subject.key();
    if let Some(record) = engine.trials.get(&key) {
        return Tried {
            record,
            reasons: Vec::new(),
        };
    }
    let tried = try_uncached(engine, subject);
    if tried.reasons.is_empty() {
        engine.trials.insert(key, tried.record.clone());
    }
    tried
}

fn try_uncached(engine: &Engine, subject: Subject<'_>) -> Tried {
    // The fuel is measured first, because the fuel limit ends even an endless loop, at the same
    // instruction on every machine.
    let mut record = match subject.measure(engine) {
        Ok(record) => record,
        Err(reason) => {
            return Tried {
                reasons: vec![reason],
                ..Tried::default()
            };
        }
    };
    let until = Instant::now() + TRIAL_TIME_MAX;
    let mut reasons = subject.try_sets(until);
    if reasons.is_empty() {
        record.time_us = subject.time().as_micros() as u64;
        reasons = subject.try_parameters(until);
    }
    Tried { record, reasons }
}

/// Answer of a stage. Scores are compared by their bits, because the same bytes are required.
pub type Answer = Vec<u32>;

impl Subject<'_> {
    /// Returns the digest of everything that a trial's result depends on.
    fn key(&self) -> Digest {
        let all = (self.stage, self.module.digest, self.params, self.limits);
        // Serialising plain data to memory cannot fail.
        Digest::from_content(&serde_json::to_vec(&all).unwrap_or_default())
    }

    fn measure(&self, engine: &Engine) -> Result<StageRecord, Reason> {
        let metered = engine.load_metered(self.bytes).map_err(|error| {
            Reason::new(
                error.code(),
                self.stage,
                format!("{}.module: {error}", self.stage),
            )
        })?;
        let measured = Subject {
            module: &metered,
            ..*self
        };
        let mut record = StageRecord {
            class: self.module.shape.class().as_str().into(),
            module_bytes: self.module.shape.bytes,
            compile_ms: self.module.compiled_in.map(|took| took.as_millis() as u64),
            ..StageRecord::default()
        };
        for (candidates, times) in MEASURED {
            let Some(meter) = metered.meter() else { break };
            meter.set_fuel_max(times * self.fuel_allowed());
            let golden = Golden::typical("", candidates);
            let answered = measured.call(InstanceMode::Fresh, &golden, self.params);
            if let Err(failure) = answered
                && failure.kind == FailureKind::Deadline
            {
                return Err(self.endless(candidates, meter.fuel_max()));
            }
            // Other failures are ignored here, because the calls on the golden sets find them.
            let Used { fuel, memory_bytes } = meter.used();
            record.fuel.push(FuelAt { candidates, fuel });
            record.memory_bytes = record.memory_bytes.max(memory_bytes);
        }
        if let [.., less, more] = record.fuel[..] {
            record.growth = growth(less, more);
        }
        Ok(record)
    }

    fn fuel_allowed(&self) -> u64 {
        u64::from(self.limits.deadline_ms) * FUEL_PER_MS
    }

    fn takes_too_long(&self) -> Reason {
        let message = format!(
            "{}: the trial was not finished within {} s; declare fewer parameters, or do less work",
            self.stage,
            TRIAL_TIME_MAX.as_secs()
        );
        Reason::new("trial_time", self.stage, message)
    }

    fn endless(&self, candidates: usize, fuel: u64) -> Reason {
        let Self { stage, limits, .. } = self;
        let message = format!(
            "{stage}: not finished with {candidates} candidates after {fuel} fuel, and limits.deadline_ms is {}: there is an endless loop or too much work",
            limits.deadline_ms
        );
        Reason::new("deadline", *stage, message)
    }

    /// Calls the stage on each golden set, twice on one instance and once on a fresh one. Every
    /// answer must keep the contract.
    fn try_sets(&self, until: Instant) -> Vec<Reason> {
        let mut breaches = Breaches::default();
        for golden in golden::sets() {
            if Instant::now() > until {
                return vec![self.takes_too_long()];
            }
            match self.try_set(&golden) {
                Ok(()) => {}
                Err(breach) => {
                    let hopeless = breach.code == FailureKind::Deadline.as_str();
                    breaches.add(golden.name, breach);
                    if hopeless {
                        break;
                    }
                }
            }
        }
        breaches.reasons(self.stage)
    }

    fn try_set(&self, golden: &Golden) -> Result<(), Breach> {
        let first = self.call(InstanceMode::Reuse, golden, self.params)?;
        let again = self.call(InstanceMode::Reuse, golden, self.params)?;
        let fresh = self.call(InstanceMode::Fresh, golden, self.params)?;
        if again != first || fresh != first {
            return Err(Breach {
                code: "not_repeatable",
                detail: "the same arguments gave a different answer: the module keeps state between calls"
                    .to_owned(),
            });
        }
        Ok(())
    }

    /// Calls the stage with every parameter at both ends of its range and the other parameters
    /// as the policy sets them.
    fn try_parameters(&self, until: Instant) -> Vec<Reason> {
        let golden = golden::for_parameters();
        let mut reasons = Vec::new();
        for (at, declared) in self.module.description.parameters.iter().enumerate() {
            for (end, value) in [("minimum", declared.min), ("maximum", declared.max)] {
                if Instant::now() > until {
                    return vec![self.takes_too_long()];
                }
                let mut params = self.params.to_vec();
                params[at] = value;
                if let Err(failure) = self.call(InstanceMode::Reuse, &golden, &params) {
                    let message = format!(
                        "{}.params.{} = {value}, the {end} that the module declares: {}: {}; narrow the range or handle this value",
                        self.stage,
                        declared.name,
                        failure.kind.as_str(),
                        failure.detail
                    );
                    reasons.push(Reason::new("parameter_range", self.stage, message));
                    if reasons.len() == RANGES_REPORTED {
                        return reasons;
                    }
                }
            }
        }
        reasons
    }

    fn time(&self) -> Duration {
        let golden = Golden::typical("", CANDIDATES_MAX);
        let timed = || {
            let started = Instant::now();
            let _ = self.call(self.limits.instance, &golden, self.params);
            started.elapsed()
        };
        (0..TIMED_CALLS).map(|_| timed()).min().unwrap_or_default()
    }

    /// Makes one call and checks its answer.
    ///
    /// # Errors
    /// Fails if the call fails or breaks the contract.
    pub fn call(
        &self,
        mode: InstanceMode,
        golden: &Golden,
        params: &[f64],
    ) -> Result<Answer, PolicyFailure> {
        let module = self.module;
        let call = StageCall {
            budget: CallBudget {
                deadline: Instant::now() + CALL_TIME_MAX,
                memory_bytes: (self.limits.memory_mb as usize) << 20,
                mode,
                claim: Claim::Other,
            },
            request: &golden.request,
            params,
        };
        let all = (0..golden.set.len() as u32).collect();
        let columns = |rows| Columns::gather(&module.features, golden.input(), rows);
        match self.stage {
            Stage::Dedup => {
                let columns = columns(all);
                let kept = module.dedup(call, &columns.candidates())?;
                check_kept(&kept, columns.rows.len())?;
                Ok(kept)
            }
            Stage::Score => {
                let columns = columns(all);
                let scores = module.score(call, &columns.candidates())?;
                check_scores(&scores, columns.rows.len())?;
                Ok(scores.into_iter().map(f32::to_bits).collect())
            }
            Stage::Saturation => {
                let order = golden.best_first();
                let scores: Vec<f32> = order
                    .iter()
                    .map(|&row| golden.scores[row as usize])
                    .collect();
                let columns = columns(order);
                let shown = module.saturate(call, &columns.ranked(&scores))?;
                check_permutation(&shown, columns.rows.len())?;
                Ok(shown)
            }
        }
    }
}

/// A failure on one golden set.
struct Breach {
    code: &'static str,
    detail: String,
}

impl From<PolicyFailure> for Breach {
    fn from(failure: PolicyFailure) -> Self {
        Self {
            code: failure.kind.as_str(),
            detail: failure.detail,
        }
    }
}

/// Failures by kind. Each kind becomes one reason that names all golden sets on which it occurs.
#[derive(Default)]
struct Breaches(Vec<(Breach, Vec<&'static str>)>);

impl Breaches {
    fn add(&mut self, set: &'static str, breach: Breach) {
        let known = self
            .0
            .iter_mut()
            .find(|(known, _)| known.code == breach.code);
        match known {
            Some((_, sets)) => sets.push(set),
            None => self.0.push((breach, vec![set])),
        }
    }

    fn reasons(self, stage: Stage) -> Vec<Reason> {
        let reason = |(breach, sets): (Breach, Vec<&str>)| {
            let Breach { code, detail } = breach;
            let sets = sets.join(", ");
            Reason::new(
                code,
                stage,
                format!("{stage}: {code}: {detail} (golden sets: {sets})"),
            )
        };
        self.0.into_iter().map(reason).collect()
    }
}
