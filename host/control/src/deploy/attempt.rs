//! Attempts to make one change: its policies are loaded before the lock `changing` is taken, and it
//! is repeated if another change came in between.

use super::{Author, Deploy, DeployError};
use crate::loader::{Key, LoadError, Need, Overrides};
use nova_model::artifact::PolicyRef;
use nova_model::registry::RegistryState;
use nova_policy::loaded::LoadedPolicy;
use std::collections::HashMap;
use std::sync::Arc;

/// Attempts to make one change while others change the registry.
const ATTEMPTS_MAX: u32 = 8;

/// Counts the attempts to make one change.
pub(super) struct Attempts(u32);

impl Attempts {
    pub fn new() -> Self {
        Self(0)
    }

    /// Reports if the change should be made again, because another one came in between. If its
    /// author has a precondition, the next attempt checks that again.
    pub fn again<T>(&mut self, made: &Result<T, DeployError>) -> bool {
        self.0 += 1;
        matches!(made, Err(DeployError::Overtaken(_))) && self.0 < ATTEMPTS_MAX
    }
}

/// Policies that were loaded for a change before the lock `changing` was taken.
#[derive(Default)]
pub(super) struct Early {
    held: Vec<Arc<LoadedPolicy>>,
    failed: HashMap<Key, LoadError>,
}

impl Deploy {
    /// Loads the policies that a change needs. The caller holds the result while it makes the
    /// change, which reports what could not be loaded.
    pub(super) async fn load_early(
        &self,
        policies: impl IntoIterator<Item = (PolicyRef, Option<Overrides>)>,
    ) -> Early {
        let state = self.serving().state.clone();
        let mut early = Early::default();
        for (policy, overrides) in policies {
            let Ok(need) = Need::of(&state, &policy, overrides.as_ref()) else {
                continue;
            };
            match self.loader.load_needed(&need).await {
                Ok(loaded) => early.held.push(loaded),
                Err(error) => drop(early.failed.insert(need.key, error)),
            }
        }
        early
    }

    /// Returns a policy that was loaded early. The caller holds the lock `changing`, so this does
    /// not load it.
    ///
    /// # Errors
    /// Returns the reason why it could not be loaded. Returns [`LoadError::NotLoaded`] if the state
    /// changed since, so that another policy is needed.
    pub(super) fn require_loaded(
        &self,
        early: &mut Early,
        state: &RegistryState,
        policy: &PolicyRef,
        overrides: Option<&Overrides>,
    ) -> Result<Arc<LoadedPolicy>, LoadError> {
        let need = Need::of(state, policy, overrides)?;
        if let Some(loaded) = self.loader.in_memory(&need.key) {
            return Ok(loaded);
        }
        let failed = early.failed.remove(&need.key);
        Err(failed.unwrap_or_else(|| LoadError::NotLoaded(policy.clone())))
    }

    /// Ends a change: saves the state that is now in force on this host's disk, so that a host that
    /// is killed after the answer starts with it. The lock `changing` is free by now.
    pub(super) async fn finish<T>(
        &self,
        author: Author<'_>,
        made: Result<T, DeployError>,
    ) -> Result<T, DeployError> {
        self.save_state().await;
        made.map_err(|error| self.in_terms_of(author, error))
    }

    /// Saves the registry's state, as this host read it last, on this host's disk.
    pub(super) async fn save_state(&self) {
        if let Err(error) = self.registry.save_state().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "could not save the registry's state on disk; a start without the registry would serve an older state"
            );
        }
    }
}
