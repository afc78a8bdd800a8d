//! Routing: the choice of the policy that ranks for a viewer. Forced viewers come first, then
//! running experiments by priority, then the canary, then the active policy. Pure; the viewer's
//! attributes are passed in.
//!
//! A viewer's place in a canary depends on the viewer and the policy alone, so viewers stay in it
//! while its percentage grows.

use nova_model::experiments::Assignment;
use nova_model::experiments::assignment::{BucketRange, bucket, choose, in_namespace};
use nova_model::experiments::cohort::Rule;
use nova_model::experiments::spec::ExperimentSpec;
use nova_model::time::UnixMs;
use nova_model::user::ViewerAttributes;
use nova_policy::loaded::LoadedPolicy;
use std::sync::Arc;

/// A running experiment, prepared for assigning viewers.
#[derive(Debug)]
pub struct RunningExperiment {
    pub key: Arc<str>,
    pub spec: ExperimentSpec,
    rule: Rule,
    ranges: Vec<BucketRange>,
    /// Variations in the order of the spec.
    variations: Vec<Variation>,
}

#[derive(Debug)]
pub struct Variation {
    pub key: Arc<str>,
    pub policy: Arc<LoadedPolicy>,
}

/// Result of looking up a viewer's attributes.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// The store answered. `None` if it does not know the viewer.
    Known(Option<Arc<ViewerAttributes>>),
    /// The store did not answer. Cohorts that depend on attributes then match no viewer, because
    /// guessing would move viewers back and forth.
    Unavailable,
}

/// Policy and assignment chosen for a viewer.
#[derive(Debug, Clone)]
pub struct Route {
    /// `None` if no policy is in service; the native ranker is used then.
    pub policy: Option<Arc<LoadedPolicy>>,
    pub assignment: Option<Assignment>,
}

impl RunningExperiment {
    pub fn new(
        key: &str,
        spec: ExperimentSpec,
        rule: Rule,
        policies: Vec<Arc<LoadedPolicy>>,
    ) -> Self {
        let variations = spec
            .variations
            .iter()
            .zip(policies)
            .map(|(variation, policy)| Variation {
                key: variation.key.as_str().into(),
                policy,
            })
            .collect();
        Self {
            key: key.into(),
            ranges: spec.ranges(),
            spec,
            rule,
            variations,
        }
    }

    pub fn needs_attributes(&self) -> bool {
        self.rule.needs_attributes()
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<LoadedPolicy>> {
        self.variations.iter().map(|variation| &variation.policy)
    }

    /// Returns the variations with their keys.
    pub fn variations(&self) -> &[Variation] {
        &self.variations
    }

    fn forced(&self, unit: &str) -> Option<usize> {
        self.spec
            .overrides
            .get(unit)
            .and_then(|variation| self.spec.variation(variation))
    }

    fn assigned(
        &self,
        viewer: u64,
        unit: &str,
        attributes: &Lookup,
        now_ms: UnixMs,
    ) -> Option<usize> {
        let attributes = match attributes {
            Lookup::Known(attributes) => attributes.as_deref(),
            Lookup::Unavailable if self.needs_attributes() => return None,
            Lookup::Unavailable => None,
        };
        if !self.rule.holds(viewer, attributes, now_ms) {
            return None;
        }
        if let Some(namespace) = &self.spec.namespace
            && !in_namespace(&namespace.id, unit, namespace.range)
        {
            return None;
        }
        choose(
            bucket(self.spec.seed(&self.key), unit, self.spec.hash_version)?,
            &self.ranges,
        )
    }

    fn route(&self, variation: usize) -> Option<Route> {
        let variation = self.variations.get(variation)?;
        let assignment = Assignment {
            experiment: self.key.clone(),
            variation: variation.key.clone(),
        };
        Some(Route {
            policy: Some(variation.policy.clone()),
            assignment: Some(assignment),
        })
    }
}

/// A policy that serves a share of the viewers who are in no experiment.
#[derive(Debug)]
pub struct CanaryShare {
    pub policy: Arc<LoadedPolicy>,
    /// Share in percent, above 0 and at most 100.
    pub percent: f64,
}

/// Hash version of canaries. Version 2 has 10,000 buckets, which is the step in which the
/// percentage can grow.
const CANARY_HASH: u32 = 2;

impl CanaryShare {
    /// Returns true if the viewer `unit` is in the canary. The decision depends on viewer and
    /// policy only, so viewers stay in while the percentage grows, and the next canary gets
    /// other viewers.
    pub fn takes(&self, unit: &str) -> bool {
        bucket(&self.policy.digest_hex, unit, CANARY_HASH).is_some_and(|n| n < self.percent / 100.0)
    }
}

/// Chooses the route of a viewer. `experiments` must be in order of priority. A viewer is in one
/// experiment at most.
pub fn route(
    experiments: &[RunningExperiment],
    canary: Option<&CanaryShare>,
    active: Option<&Arc<LoadedPolicy>>,
    viewer: u64,
    attributes: &Lookup,
    now_ms: UnixMs,
) -> Route {
    let unassigned = |policy: Option<&Arc<LoadedPolicy>>| Route {
        policy: policy.cloned(),
        assignment: None,
    };
    if experiments.is_empty() && canary.is_none() {
        return unassigned(active);
    }
    let unit = viewer.to_string();
    let forced = experiments
        .iter()
        .find_map(|experiment| experiment.route(experiment.forced(&unit)?));
    forced
        .or_else(|| {
            experiments.iter().find_map(|experiment| {
                experiment.route(experiment.assigned(viewer, &unit, attributes, now_ms)?)
            })
        })
        .unwrap_or_else(|| match canary {
            Some(canary) if canary.takes(&unit) => unassigned(Some(&canary.policy)),
            _ => unassigned(active),
        })
}
