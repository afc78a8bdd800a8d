//! Load and swap: loads the policies that the registry names, then swaps the pointer that
//! requests read. The protocol and the order of the locks are in `deploy/mod.rs`.

use super::Deploy;
use super::assembly::Assembly;
use super::serving::{Serving, Swap};
use crate::loader::Wanted;
use nova_model::registry::RegistryState;
use nova_model::withdrawal::served_state;
use nova_policy::loaded::LoadedPolicy;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Time that a change waits for policies that serve few or no viewers.
struct CompileDeadlines {
    each: Duration,
    all: Duration,
}

/// Policies written in Rust compile in a tenth of this time.
const COMPILE_DEADLINES: CompileDeadlines = CompileDeadlines {
    each: Duration::from_secs(1),
    all: Duration::from_secs(3),
};
/// Limits at the start of a host. No change waits for a start, and the host should start with
/// all its policies.
const COMPILE_DEADLINES_AT_START: CompileDeadlines = CompileDeadlines {
    each: Duration::from_secs(10),
    all: Duration::from_secs(30),
};
/// Time after which a policy that should serve but could not be loaded is tried again. It is
/// tried earlier if a background compilation finishes.
const RETRY_WAIT: Duration = Duration::from_secs(60);

impl CompileDeadlines {
    fn starting_now(&self) -> Wanted {
        Wanted::All {
            each: self.each,
            until: Instant::now() + self.all,
        }
    }
}

impl Deploy {
    /// Loads the registry's state and swaps the pointer.
    pub(super) async fn refresh(&self) -> anyhow::Result<()> {
        let state = self.registry.load().await?;
        self.note_audit_head(state.audit_head());
        self.serve(self.offline.with_local_changes(state)).await
    }

    /// Swaps the pointer to the registry's state combined with what only this host knows.
    /// Fetches and compiles everything necessary before the swap. Waits without a limit for the
    /// active policy only. A policy that contains an interpreter compiles for half a minute, and
    /// a rollback that comes later must not wait for an experiment's policy.
    async fn serve(&self, recorded: RegistryState) -> anyhow::Result<()> {
        let state = self.offline.with_quarantines(recorded.clone());
        let _active = self.load_active(&state).await;
        let deadlines = match self.is_prepared.load(Ordering::Acquire) {
            true => COMPILE_DEADLINES,
            false => COMPILE_DEADLINES_AT_START,
        };
        // The loaded policies are held here so that the swap below finds them in memory.
        let held = self.assemble(&state, deadlines.starting_now()).await?;
        let swap = self.serving.begin_swap().await;
        self.offline.note_recorded(&recorded);
        self.swap_to(&swap, recorded).await?;
        drop(held);
        Ok(())
    }

    /// Swaps the pointer to a state, without the policies that are not in memory. They are tried
    /// again later.
    pub(super) async fn swap_to(
        &self,
        swap: &Swap<'_>,
        state: RegistryState,
    ) -> anyhow::Result<()> {
        let state = self.offline.with_quarantines(state);
        let serving = self.assemble(&state, Wanted::InMemory).await?;
        start_anew(&self.serving.load_full().state, &serving);
        swap.store(serving);
        Ok(())
    }

    /// Assembles what serves on this host by a state that all hosts share.
    async fn assemble(&self, state: &RegistryState, wanted: Wanted) -> anyhow::Result<Serving> {
        let withdrawn = self.offline.withdrawals.in_force(state);
        let served = served_state(state, &withdrawn);
        let assembly = Assembly {
            loader: &self.loader,
            wanted,
            state: &served,
        };
        let current = self.serving.load_full().active.clone();
        Ok(Serving {
            state: state.clone(),
            withdrawn: withdrawn.into_keys().collect(),
            ..assembly.assemble(&current).await?
        })
    }

    /// Loads the policy that is active on this host by a state that all hosts share.
    pub(super) async fn load_active(&self, state: &RegistryState) -> Option<Arc<LoadedPolicy>> {
        let withdrawn = self.offline.withdrawals.in_force(state);
        let served = served_state(state, &withdrawn);
        let active = served.activations.last()?;
        self.loader.load(&served, active, None).await.ok()
    }

    /// Reports if the missing policies should be tried again, because a module was compiled
    /// since the last check or because [`RETRY_WAIT`] has passed.
    pub(super) fn is_retry_due(&self) -> bool {
        let background = self.loader.background();
        let missing_for = self.serving.missing_for();
        let is_old = missing_for.is_some_and(|missing_for| missing_for >= RETRY_WAIT);
        background.take_news() || is_old && !background.is_under_way()
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
