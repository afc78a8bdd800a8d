//! The failures of policies on this host, as viewers' requests and shadow runs meet them.

use nova_model::artifact::PolicyRef;
use nova_model::failure::PolicyFailure;
use nova_model::failure_log::{FailureLog, Failures};
use nova_support::clock::unix_ms;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The failure log that all workers share.
#[derive(Debug, Default)]
pub struct SharedFailureLog(Mutex<FailureLog>);

impl SharedFailureLog {
    pub fn record(&self, policy: &PolicyRef, failure: &PolicyFailure) {
        self.locked().record(policy, failure, unix_ms());
    }

    pub fn of(&self, policy: &PolicyRef) -> Vec<Failures> {
        self.locked().of(policy)
    }

    fn locked(&self) -> MutexGuard<'_, FailureLog> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
