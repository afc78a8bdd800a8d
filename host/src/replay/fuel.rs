//! The cost of policies in fuel, the unit of work that is the same on every machine, over the
//! first records of a replay.

use super::policies::{Contender, Library, Server};
use super::record::Record;
use nova_model::artifact::Digest;
use nova_model::artifact::Stage;
use nova_policy::compare::{Distribution, Samples};
use nova_policy::loaded::LoadedPolicy;
use nova_policy::ranking::{RankInput, rank};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of metered records. Fuel depends only on the candidates, and counting it is
/// slow.
pub const METERED_MAX: u32 = 200;
/// Generous fuel limit of a metered ranking, which only guarantees that it ends.
const FUEL_MAX: u64 = 50_000_000_000;
/// Generous time limit of a metered ranking, so that fuel ends a run and not the clock.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Fuel of one ranking (all three stages), for the policies that served and for each contender.
#[derive(Debug, Clone)]
pub struct Fuel {
    pub served: Option<Distribution>,
    pub contenders: Vec<Option<Distribution>>,
}

/// Policies compiled for metering when they are first needed. `None` if such a compilation
/// failed.
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
                        tracing::warn!(policy = %policy.spec.policy, error = format!("{error:#}"), "could not compile a policy for metering; reporting no fuel for it");
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
    let budget = policy.budget_without_deadline(TIME_LIMIT);
    rank(&policy.running(budget), input).ok()?;
    Some(meters.iter().flatten().map(|meter| meter.used().fuel).sum())
}

/// Measures the fuel of each policy over `records`. Rankings that fail are left out, because
/// their fuel is meaningless.
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
