//! The pointer that every request reads, and the right to swap it.

use crate::routing::{CanaryShare, RunningExperiment};
use arc_swap::{ArcSwap, Guard};
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::registry::RegistryState;
use nova_policy::loaded::LoadedPolicy;
use nova_support::metrics::METRICS;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::MutexGuard;

/// All policy data that a request needs, at one revision of the registry.
#[derive(Debug)]
pub struct Serving {
    /// The state that all hosts share, with the changes that this host has yet to record.
    pub state: RegistryState,
    /// Digests that this host took out of its own service.
    pub withdrawn: BTreeSet<Digest>,
    pub active: Arc<LoadedPolicy>,
    /// Former policies, the most recent first. A rollback returns to `warm[0]`.
    pub warm: Vec<Arc<LoadedPolicy>>,
    pub canary: Option<CanaryShare>,
    /// Policies that rank the same requests as the active policy and serve no viewer.
    pub shadows: Vec<Arc<LoadedPolicy>>,
    /// Running experiments, highest priority first.
    pub experiments: Vec<RunningExperiment>,
    pub needs_attributes: bool,
}

impl Serving {
    /// Serves one policy to every viewer, before any state of the registry is known.
    pub(super) fn new(active: Arc<LoadedPolicy>) -> Self {
        Self {
            state: RegistryState::default(),
            withdrawn: BTreeSet::new(),
            active,
            warm: Vec::new(),
            canary: None,
            shadows: Vec::new(),
            experiments: Vec::new(),
            needs_attributes: false,
        }
    }

    /// Returns every policy that ranks: for viewers, as a former one that stands in, or in shadow.
    fn policies(&self) -> impl Iterator<Item = &Arc<LoadedPolicy>> {
        let varied = self.experiments.iter().flat_map(|e| e.policies());
        std::iter::once(&self.active)
            .chain(&self.warm)
            .chain(self.canary.iter().map(|canary| &canary.policy))
            .chain(&self.shadows)
            .chain(varied)
    }

    /// Gives the policies and experiments in use their series in the metrics.
    fn show_metrics(&self) {
        self.policies().for_each(|policy| policy.metrics.show());
        let running = self.experiments.iter();
        METRICS.show_experiments(running.map(|e| e.key.to_string()).collect());
    }

    /// Removes the series of the policies that `next` does not use.
    fn hide_metrics_of_unused(&self, next: &Self) {
        let used: BTreeSet<&PolicyRef> = next.policies().map(|p| &p.spec.policy).collect();
        let unused = |policy: &&Arc<LoadedPolicy>| !used.contains(&policy.spec.policy);
        for policy in self.policies().filter(unused) {
            policy.metrics.hide();
            METRICS.forget_policy(&policy.spec.policy.to_string());
        }
    }

    /// Returns the active policy. Returns `None` if it is out of service here and no former policy
    /// is left: then the native ranking serves.
    pub fn active_in_service(&self) -> Option<&Arc<LoadedPolicy>> {
        (!self.is_out_of_service(self.active.effective_digest)).then_some(&self.active)
    }

    /// Returns every policy that is in use: the active one, canary, variations, shadows and former
    /// ones. Each occurs once, however many parts it has.
    pub fn in_service(&self) -> Vec<&Arc<LoadedPolicy>> {
        let variations = self
            .experiments
            .iter()
            .flat_map(RunningExperiment::policies);
        let all = std::iter::once(&self.active)
            .chain(self.canary.iter().map(|canary| &canary.policy))
            .chain(variations)
            .chain(&self.shadows)
            .chain(&self.warm);
        let mut seen = BTreeSet::new();
        all.filter(|policy| seen.insert(policy.effective_digest))
            .collect()
    }

    /// Reports if no viewer of this host gets the digest.
    pub fn is_out_of_service(&self, digest: Digest) -> bool {
        self.state.quarantined.contains_key(&digest) || self.withdrawn.contains(&digest)
    }
}

#[derive(Debug)]
pub(super) struct ServingPointer {
    pointer: ArcSwap<Serving>,
    swapping: tokio::sync::Mutex<()>,
}

impl ServingPointer {
    pub fn new(serving: Serving) -> Self {
        serving.show_metrics();
        show_active(&serving.active);
        Self {
            pointer: ArcSwap::from_pointee(serving),
            swapping: tokio::sync::Mutex::default(),
        }
    }

    pub fn load(&self) -> Guard<Arc<Serving>> {
        self.pointer.load()
    }

    pub fn load_full(&self) -> Arc<Serving> {
        self.pointer.load_full()
    }

    /// Takes the lock `swapping`. Until the result is dropped, only its holder swaps the pointer.
    pub async fn begin_swap(&self) -> Swap<'_> {
        Swap {
            _swapping: self.swapping.lock().await,
            to: self,
        }
    }
}

/// The right to swap the pointer. Its holder must not call the registry or compile; see the
/// locks in `deploy/mod.rs`.
pub(super) struct Swap<'a> {
    to: &'a ServingPointer,
    _swapping: MutexGuard<'a, ()>,
}

impl Swap<'_> {
    pub fn store(&self, serving: Serving) {
        let quarantined = i64::try_from(serving.state.quarantined.len()).unwrap_or(i64::MAX);
        METRICS.policy_quarantined.set(quarantined);
        let native_only = serving.active_in_service().is_none();
        METRICS.policy_native_only.set(native_only.into());
        let serving = Arc::new(serving);
        // Shown before the swap, so that the first request is counted.
        serving.show_metrics();
        let before = self.to.pointer.swap(serving.clone());
        before.hide_metrics_of_unused(&serving);
        show_active(&serving.active);
    }
}

fn show_active(active: &LoadedPolicy) {
    METRICS.set_active_policy(&active.spec.policy, active.digest);
}
