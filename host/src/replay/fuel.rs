//! What a policy costs in fuel, the unit of work that is the same on every machine, over the first records of a replay.

use super::policies::{Contender, Library, Server};
use super::record::Record;
use crate::policy::Digest;
use crate::policy::artifact::Stage;
use crate::policy::compare::{Distribution, Samples};
use crate::policy::loaded::LoadedPolicy;
use crate::policy::ranking::{RankInput, rank};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Records that are metered: fuel varies with the candidates alone, and counting it is slow.
pub const METERED_MAX: u32 = 200;
/// A ranking that is metered must end, but may take its time.
const FUEL_MAX: u64 = 50_000_000_000;
/// Fuel ends a run, not the clock.
const PATIENCE: Duration = Duration::from_secs(60);

/// Fuel of a ranking, three stages, of the policies that served and of each contender.
#[derive(Debug, Clone)]
pub struct Fuel {
    pub served: Option<Distribution>,
    pub contenders: Vec<Option<Distribution>>,
}

/// Policies that count what they use, compiled when they are first needed; `None` where that is not possible.
struct Meters<'a> {
    library: &'a Library,
    policies: HashMap<Digest, Option<LoadedPolicy>>,
}

impl Meters<'_> {
    fn fuel(&mut self, policy: &Arc<LoadedPolicy>, input: RankInput<'_>) -> Option<u64> {
        let library = self.library;
        let metered = self
            .policies
            .entry(policy.effective_digest)
            .or_insert_with(|| {
                let metered = library.metered(policy);
                metered
                    .inspect_err(|error| {
                        tracing::warn!(policy = %policy.spec.policy, error = format!("{error:#}"), "fuel");
                    })
                    .ok()
            });
        used(metered.as_ref()?, input)
    }
}

fn used(policy: &LoadedPolicy, input: RankInput<'_>) -> Option<u64> {
    let meters = Stage::ALL.map(|stage| policy.modules.get(stage).meter());
    for meter in meters.iter().flatten() {
        meter.set_fuel_max(FUEL_MAX);
    }
    let budget = policy.budget_without_deadline(PATIENCE);
    rank(&policy.running(budget), input).ok()?;
    Some(meters.iter().flatten().map(|meter| meter.used().fuel).sum())
}

/// Rankings that fail use no fuel that says anything, and are left out.
pub fn measure(library: &Library, contenders: &[Contender], records: &[Record]) -> Fuel {
    let mut meters = Meters {
        library,
        policies: HashMap::new(),
    };
    let samples = || Samples::latest(usize::MAX);
    let mut served = samples();
    let mut others = vec![samples(); contenders.len()];
    for record in records {
        let request = record.request();
        let input = record.input(&request);
        if let Some(Server::Policy(policy)) = library.served(&record.answer.policy)
            && let Some(fuel) = meters.fuel(&policy, input)
        {
            served.push(fuel as f64);
        }
        for (contender, samples) in contenders.iter().zip(&mut others) {
            if let Some(fuel) = meters.fuel(&contender.policy, input) {
                samples.push(fuel as f64);
            }
        }
    }
    Fuel {
        served: served.distribution(),
        contenders: others.iter().map(Samples::distribution).collect(),
    }
}
