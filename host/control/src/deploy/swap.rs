//! Load and swap: swaps the pointer that requests read to what a state names and is in memory, and
//! has the rest loaded in the background. The protocol and the order of the locks are in
//! `deploy/mod.rs`.

use super::Deploy;
use super::assembly::Assembly;
use super::serving::{Serving, Swap};
use crate::loader::Need;
use nova_model::registry::RegistryState;
use nova_model::withdrawal::served_state;
use nova_policy::loaded::LoadedPolicy;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Time that the start of a host waits for policies other than the active one. No change waits
/// for a start, and the host should start with all its policies.
const START_WAIT: Duration = Duration::from_secs(30);

impl Deploy {
    /// Reads the registry's state and swaps the pointer.
    pub(super) async fn refresh(&self) -> anyhow::Result<()> {
        let state = self.registry.load().await?;
        self.registry.note_state(&state);
        self.note_audit_head(state.audit_head());
        self.serve(self.offline.with_local_changes(state)).await;
        Ok(())
    }

    /// Swaps the pointer to the registry's state combined with what only this host knows.
    async fn serve(&self, recorded: RegistryState) {
        let held = match self.is_started.load(Ordering::Acquire) {
            true => Vec::new(),
            false => self.load_at_start(&recorded).await,
        };
        let swap = self.serving.begin_swap().await;
        self.offline.note_recorded(&recorded);
        self.swap_to(&swap, recorded);
        drop(held);
    }

    /// Loads what a state names, at the start of this host. Waits without a limit for the active
    /// policy only.
    async fn load_at_start(&self, recorded: &RegistryState) -> Vec<Arc<LoadedPolicy>> {
        let state = self.offline.with_quarantines(recorded.clone());
        let (_, missing) = self.assemble(&state);
        let (active, until) = (state.activations.last(), Instant::now() + START_WAIT);
        let loads = missing.iter().map(|need| async move {
            let load = self.loader.load_needed(need);
            if Some(&need.key.0) == active {
                return load.await.ok();
            }
            let load = tokio::time::timeout_at(until, load).await;
            load.ok()?.ok()
        });
        futures::future::join_all(loads)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    /// Swaps the pointer to a state, without the policies that are not in memory. They are loaded
    /// in the background and serve as soon as they are loaded.
    pub(super) fn swap_to(&self, swap: &Swap<'_>, state: RegistryState) {
        let state = self.offline.with_quarantines(state);
        let (serving, missing) = self.assemble(&state);
        start_anew(&self.serving.load_full().state, &serving);
        swap.store(serving);
        self.loader.want(missing);
    }

    /// Lets the policies serve that were loaded in the background since the last call.
    pub(super) async fn serve_loaded(&self) {
        if self.loader.background().take_news() {
            let swap = self.serving.begin_swap().await;
            self.swap_to(&swap, self.serving().state.clone());
        }
    }

    /// Assembles what serves on this host by a state that all hosts share, from policies in memory.
    fn assemble(&self, state: &RegistryState) -> (Serving, Vec<Need>) {
        let withdrawn = self.offline.withdrawals.in_force(state);
        let served = served_state(state, &withdrawn);
        let current = self.serving.load_full().active.clone();
        let (serving, missing) = Assembly::assemble(&self.loader, &served, &current);
        let serving = Serving {
            state: state.clone(),
            withdrawn: withdrawn.into_keys().collect(),
            ..serving
        };
        (serving, missing)
    }
}

/// Lets the policies that were lifted since `before` start with empty counts. Otherwise the
/// failures of the time before would take them out of service again.
fn start_anew(before: &RegistryState, serving: &Serving) {
    let lifts = &serving.state.lifts;
    let is_lifted = |digest| lifts.get(digest) != before.lifts.get(digest);
    let policies = serving.in_service().into_iter();
    policies
        .filter(|policy| is_lifted(&policy.effective_digest))
        .for_each(|policy| policy.outcomes.clear());
}
