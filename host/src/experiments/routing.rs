//! Which policy ranks for a viewer: forced viewers, then running experiments by priority, then the
//! canary, then the active policy. Pure; the viewer's attributes are passed in.

use super::assignment::{BucketRange, bucket, choose, in_namespace};
use super::cohort::Rule;
use super::spec::ExperimentSpec;
use crate::policy::loaded::LoadedPolicy;
use crate::stores::{UnixMs, ViewerAttributes};
use std::sync::Arc;

/// A running experiment, ready to assign.
#[derive(Debug)]
pub struct RunningExperiment {
    pub key: Arc<str>,
    pub spec: ExperimentSpec,
    rule: Rule,
    ranges: Vec<BucketRange>,
    /// In the order of the spec.
    variations: Vec<Variation>,
}

#[derive(Debug)]
pub struct Variation {
    pub key: Arc<str>,
    pub policy: Arc<LoadedPolicy>,
}

/// A viewer's attributes, as far as they could be had.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// `None`: a viewer nobody knows.
    Known(Option<Arc<ViewerAttributes>>),
    /// The store did not answer. Cohorts that ask for attributes then take nobody: guessing would move viewers to and fro.
    Unavailable,
}

/// Where a viewer was sent.
#[derive(Debug, Clone)]
pub struct Route {
    /// `None`: no policy is in service, and the native copy ranks.
    pub policy: Option<Arc<LoadedPolicy>>,
    pub assignment: Option<Assignment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub experiment: Arc<str>,
    pub variation: Arc<str>,
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

    /// With the keys of the variations.
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

/// A policy that serves a share of the viewers whom no experiment takes.
#[derive(Debug)]
pub struct CanaryShare {
    pub policy: Arc<LoadedPolicy>,
    /// Above 0 and at most 100.
    pub percent: f64,
}

/// The hash version of canaries: 10,000 buckets, the steps in which a percent can grow.
const CANARY_HASH: u32 = 2;

impl CanaryShare {
    /// By viewer and policy alone: who is in stays in while the percent grows, and the next canary
    /// takes other viewers.
    pub fn takes(&self, unit: &str) -> bool {
        bucket(&self.policy.digest_hex, unit, CANARY_HASH).is_some_and(|n| n < self.percent / 100.0)
    }
}

/// `experiments` in the order of their priority. A viewer is in one experiment at most.
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
