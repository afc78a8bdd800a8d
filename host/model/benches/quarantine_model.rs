//! A model of error budgets: hosts, viewers and failure rates, with the pure functions that a host
//! uses. Prints, for several constants, the chance that a good policy is taken out of service and
//! the time after which a bad one is. Seeded, so that every run prints the same table.
//!
//! `cargo bench -p nova-model --bench quarantine_model`

#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use nova_model::artifact::{Digest, PolicyRef};
use nova_model::budget::{Call, Thresholds, Window};
use nova_model::failure::FailureKind;
use nova_model::lifecycle::complete_quarantines;
use nova_model::registry::RegistryState;
use nova_model::withdrawal::OwnWithdrawal;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::time::Duration;

const HOSTS: usize = 3;
const VIEWERS: u64 = 10_000;
/// Time of good service before the policy begins to fail, so that windows are full.
const GOOD_S: u64 = 30;
/// A viewer without a fresh feed reloads with this probability, after 1 to 5 s.
const RELOADS: f64 = 0.8;

const fn constants(min_failures: u32, min_viewers: u32, ratio: f64) -> Thresholds {
    Thresholds {
        min_failures,
        min_viewers,
        ratio,
        window_s: 30,
        p99_factor: 0.0,
        p99_min_calls: 1,
    }
}

const CONSTANTS: [Thresholds; 5] = [
    constants(5, 1, 0.05),
    constants(5, 3, 0.05),
    constants(5, 5, 0.05),
    constants(10, 3, 0.05),
    constants(5, 3, 0.1),
];

/// What fails.
#[derive(Clone, Copy)]
enum Fault {
    /// Every call of this share of the viewers.
    Viewers(f64),
    /// This share of the calls on the first host, whoever asks: the host is broken.
    OneHost(f64),
}

struct Scenario {
    name: &'static str,
    fault: Fault,
    /// True if the policy should go.
    is_bad: bool,
    calls_per_s: f64,
    length_s: u64,
    runs: u64,
}

/// Times after the first failing second at which the policy left each host and the fleet.
#[derive(Clone, Default)]
struct Outcome {
    hosts: Vec<f64>,
    fleet: Option<f64>,
}

/// The fleet under one choice of constants.
struct Fleet {
    thresholds: Thresholds,
    state: RegistryState,
    out: [bool; HOSTS],
    outcome: Outcome,
}

impl Fleet {
    fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            state: RegistryState::default(),
            out: [false; HOSTS],
            outcome: Outcome::default(),
        }
    }

    /// Decides as a host does after a failed call.
    fn decide(&mut self, host: usize, window: &Window, at_s: f64) {
        if self.out[host] {
            return;
        }
        let counts = window.counts(at_s as u64, self.thresholds.window_s);
        let Some(reason) = counts.failed_too_often(&self.thresholds) else {
            return;
        };
        self.leave(host, at_s);
        let own = OwnWithdrawal {
            digest: Digest::from_content(b"policy"),
            policy: "policy@1.0.0".parse::<PolicyRef>().unwrap(),
            reason,
            at_ms: 0,
            base_revision: 0,
        };
        if let Some(change) = own.report(&host.to_string(), false, &self.state) {
            self.state.apply(&change);
            complete_quarantines(&mut self.state);
        }
        if !self.state.quarantined.is_empty() {
            self.outcome.fleet = Some(at_s - GOOD_S as f64);
            (0..HOSTS).for_each(|host| self.leave(host, at_s));
        }
    }

    fn leave(&mut self, host: usize, at_s: f64) {
        if !std::mem::replace(&mut self.out[host], true) {
            self.outcome.hosts.push(at_s - GOOD_S as f64);
        }
    }
}

fn exponential(random: &mut StdRng, mean: f64) -> f64 {
    -mean * random.random_range(f64::EPSILON..1.0).ln()
}

/// Runs one fleet once, under all constants at the same time: the calls are the same for all.
fn run(scenario: &Scenario, seed: u64) -> Vec<Outcome> {
    let mut random = StdRng::seed_from_u64(seed);
    let failing: HashSet<u64> = match scenario.fault {
        Fault::Viewers(share) => (0..VIEWERS).filter(|_| random.random_bool(share)).collect(),
        Fault::OneHost(_) => HashSet::new(),
    };
    let mut windows: [Window; HOSTS] = Default::default();
    let mut fleets: Vec<Fleet> = CONSTANTS.map(Fleet::new).into();
    // Reloads to come, in microseconds, with their viewer.
    let mut reloads = BinaryHeap::<Reverse<(u64, u64)>>::new();
    let end_s = (GOOD_S + scenario.length_s) as f64;
    let mut next_s = 0.0;
    while next_s < end_s && fleets.iter().any(|fleet| fleet.out != [true; HOSTS]) {
        let reload = reloads
            .peek()
            .map(|Reverse((at, viewer))| (*at as f64 / 1e6, *viewer));
        let (at_s, viewer) = match reload {
            Some((at_s, viewer)) if at_s <= next_s => {
                reloads.pop();
                (at_s, viewer)
            }
            _ => {
                let at_s = next_s;
                next_s += exponential(&mut random, 1.0 / scenario.calls_per_s);
                (at_s, random.random_range(0..VIEWERS))
            }
        };
        let host = random.random_range(0..HOSTS);
        let fails = at_s >= GOOD_S as f64
            && match scenario.fault {
                Fault::Viewers(_) => failing.contains(&viewer),
                Fault::OneHost(share) => host == 0 && random.random_bool(share),
            };
        let call = Call {
            viewer,
            failure: fails.then_some(FailureKind::Trap),
            cpu: Duration::from_micros(300),
        };
        windows[host].record(at_s as u64, call);
        if fails {
            for fleet in &mut fleets {
                fleet.decide(host, &windows[host], at_s);
            }
            if random.random_bool(RELOADS) {
                let again_s = at_s + random.random_range(1.0..5.0);
                reloads.push(Reverse(((again_s * 1e6) as u64, viewer)));
            }
        }
    }
    fleets.into_iter().map(|fleet| fleet.outcome).collect()
}

fn quantile(sorted: &[f64], share: f64) -> String {
    match sorted.len() {
        0 => "–".to_owned(),
        len => {
            let at = ((len as f64 * share).ceil() as usize).clamp(1, len) - 1;
            format!("{:.1} s", sorted[at])
        }
    }
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.2} %", 100.0 * part as f64 / whole as f64)
}

fn print(scenario: &Scenario) {
    let mut by_constants = vec![Vec::new(); CONSTANTS.len()];
    for seed in 0..scenario.runs {
        for (outcomes, outcome) in by_constants.iter_mut().zip(run(scenario, seed)) {
            outcomes.push(outcome);
        }
    }
    for (thresholds, outcomes) in CONSTANTS.iter().zip(by_constants) {
        let some_host = outcomes.iter().filter(|outcome| !outcome.hosts.is_empty());
        let fleet: Vec<f64> = outcomes
            .iter()
            .filter_map(|outcome| outcome.fleet)
            .collect();
        let mut hosts: Vec<f64> = outcomes.iter().flat_map(|o| o.hosts.clone()).collect();
        hosts.sort_by(f64::total_cmp);
        println!(
            "| {} | {} | {}/s | {} | {} | {} | {} | {} | {} | {} |",
            scenario.name,
            if scenario.is_bad { "yes" } else { "no" },
            scenario.calls_per_s,
            thresholds.min_failures,
            thresholds.min_viewers,
            thresholds.ratio,
            percent(some_host.count(), outcomes.len()),
            percent(fleet.len(), outcomes.len()),
            quantile(&hosts, 0.5),
            quantile(&hosts, 0.99),
        );
    }
}

fn main() {
    println!(
        "| fails | bad | calls | failures | viewers | ratio | some host | fleet | host, median | host, p99 |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    let scenario = |name, fault, is_bad, calls_per_s, length_s, runs| Scenario {
        name,
        fault,
        is_bad,
        calls_per_s,
        length_s,
        runs,
    };
    for (calls_per_s, length_s) in [(3.0, 3_600), (30.0, 3_600), (300.0, 600)] {
        let runs = if calls_per_s < 100.0 { 2_000 } else { 1_000 };
        let good = |name, fault| scenario(name, fault, false, calls_per_s, length_s, runs);
        let bad = |name, fault| scenario(name, fault, true, calls_per_s, 300, runs);
        print(&good("1 viewer in 1,000", Fault::Viewers(0.001)));
        print(&good("20 % of the calls on one host", Fault::OneHost(0.2)));
        print(&bad("20 % of the viewers", Fault::Viewers(0.2)));
        print(&bad("every viewer", Fault::Viewers(1.0)));
    }
}
