//! Serving policies and their changes. Requests read one pointer ([`Serving`]). Three parts have
//! separate state: the `Loader` compiles and binds policies and knows no changes, [`Offline`]
//! has what this host changed while the registry was unavailable, and [`Deploy`] makes the
//! changes.
//!
//! # Protocol
//!
//! A change takes three steps. The lock `changing` allows one change at a time. Nothing is fetched
//! or compiled while it is held, and no client's body is read.
//!
//! 1. **Record** (`record.rs`): the registry applies the change to the revision that this host
//!    serves. A policy that the change brings into service is loaded before the lock is taken
//!    (`attempt.rs`), because a policy that cannot run must not be recorded. The modules of a
//!    publication are stored before it too. If the registry has a newer revision, this host loads
//!    it and makes the change again, a bounded number of times. A precondition of the author
//!    (`author.rs`) is checked by every attempt. A rollback is made again only while the same
//!    policy is active.
//! 2. **Swap** (`swap.rs`, `assembly.rs`): the registry's new state is read, this host's local
//!    changes and quarantines are laid over it, and the pointer is exchanged under the lock
//!    `swapping`, to what the state names and is in memory. What is missing is left out; while the
//!    active policy is missing, the one before it stays. So flags, the stop of an experiment and a
//!    rollback take effect at once, whatever else the state names.
//! 3. **Load** (`loader/background.rs`): each missing policy is fetched and compiled in a task of
//!    its own, and is swapped in when it is loaded. If it cannot be loaded, the task tries again.
//!
//! The state is saved on this host's disk (`last_good.rs`) before the change is answered and after
//! the lock is free. The task that follows the registry saves in the background.
//!
//! If step 1 succeeds and a later one fails, the caller gets [`DeployError::Recorded`], and the
//! task that follows the registry (`follow.rs`) repeats the steps 2 and 3. Changes that other
//! processes made enter the same way: that task listens and polls the revision. It waits for no
//! load either.
//!
//! **The registry is unavailable.** A rollback, the stop of an experiment or a quarantine is
//! saved on this host's disk instead of step 1, and then swapped in. The caller gets
//! [`Scope::ThisHost`]. Every other change fails. While the outage is known, the registry is not
//! asked first, so that an operator does not wait for its timeout. While local changes exist,
//! nothing else is recorded, because they are based on a state that the registry does not have.
//! When the registry answers again, the next change or the following task reconciles: it writes
//! the local changes to the registry, oldest first, or records there that they were dropped.
//!
//! **The registry refuses.** A change that it would refuse again (a missing grant, a violated
//! constraint, no audit key) is made nowhere, and the caller gets the reason. A local change that it
//! refuses is set aside on this host's disk, where an operator finds it, and is no longer in
//! force. The host goes on following.
//!
//! **Quarantine** takes the steps in the opposite order, so that it never waits for the registry:
//! it swaps the policy out first, without the lock `changing`, and is recorded afterwards. Its
//! consequences (a rollback, paused experiments) follow from the state alone, so any host records
//! those that are missing.
//!
//! **Withdrawal**: a policy that spent its error budget is swapped out in the same way, but on this
//! host only. [`Serving::state`] is what all hosts share, with the withdrawal as an entry of this
//! host. What serves here follows from it as if the digest were in quarantine. The quarantine
//! everywhere follows from the shared state when hosts agree (`nova_model::lifecycle`). A lift
//! removes both from the shared state, and each host forgets its own withdrawal when it sees it.
//!
//! # Locks
//!
//! In this order; a lock is never requested while one further down is held.
//!
//! 1. A trial permit (`admissions.rs`), for the time of an admission. It is returned before
//!    `changing` is taken.
//! 2. `Deploy::changing`, for the time of a change. Held over calls to the registry. Protects the
//!    sequence of record, load and swap, and the list of local changes from a second writer.
//!    Never held while a module is fetched, compiled or stored.
//! 3. A module's compile lock (`loader/compiled.rs`), while that module is fetched from the
//!    registry and compiled, in a task of its own.
//! 4. `swapping` (`serving.rs`), while the pointer is exchanged. Taken with or without
//!    `changing`. **Never held over a call to the registry or a compilation**, so that a
//!    quarantine does not wait for either: under it, policies come from memory only.
//! 5. The plain mutexes of the loader, of [`Offline`] and of the pointer. Never held over an
//!    await, and one at a time. `LastGood` has an asynchronous lock of the same rank, held while it
//!    writes a state to disk and never while it asks the registry.

mod admissions;
mod assembly;
mod attempt;
mod audit;
mod author;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod author_tests;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod background_tests;
mod change;
mod downgrade;
mod error;
mod experiments;
mod follow;
mod lift;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod offline_tests;
mod prune;
mod publish;
mod published;
mod quarantine;
mod record;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod refusal_tests;
mod rollback;
mod serving;
mod status;
mod swap;

pub use audit::AuditReport;
pub use author::Author;
pub use error::DeployError;
pub use nova_model::lifecycle::PolicyState;
pub use published::Published;
pub use serving::Serving;
pub use status::{OutOfService, ServingStatus};

use crate::loader::{Loader, Overrides};
use crate::offline::{HostRegistry, Offline, SetAside};
use admissions::Admissions;
use arc_swap::ArcSwap;
use nova_model::artifact::PolicyRef;
use nova_model::audit_head::AuditHead;
use nova_model::local_change::LocalChange;
use nova_model::prune::Quotas;
use nova_model::registry::RegistryState;
use nova_policy::engine::Engine;
use nova_policy::loaded::LoadedPolicy;
use serving::ServingPointer;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// Scope in which a change is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The change is in the registry, so it applies on every host.
    Everywhere,
    /// The change applies on this host only, until the registry answers.
    ThisHost,
}

#[derive(Debug)]
pub struct Deploy {
    registry: Arc<dyn HostRegistry>,
    serving: ServingPointer,
    loader: Arc<Loader>,
    offline: Offline,
    admissions: Admissions,
    /// Lock that allows one change at a time; see "Locks" above.
    changing: tokio::sync::Mutex<()>,
    /// True once this host serves. No change waits for a start.
    is_started: AtomicBool,
    /// True once the bundled policies are in the registry.
    is_prepared: AtomicBool,
    /// The end of the audit log, as this host read it last.
    audit_heads: watch::Sender<AuditHead>,
    audit_report: ArcSwap<AuditReport>,
    quotas: ArcSwap<Quotas>,
    /// True on a development host, on which a policy with `follow = true` follows its sources.
    is_development: bool,
}

impl Deploy {
    /// Publishes the bundled policies, activates `baseline` if no policy was ever active, and
    /// loads the serving policies. While the registry does not answer, the policies that were
    /// last loaded from it serve, or else the built-in baseline. [`Deploy::follow_registry`]
    /// does the rest once the registry answers.
    ///
    /// # Errors
    /// Fails if a bundled policy is refused.
    pub async fn start(
        engine: Engine,
        registry: Arc<dyn HostRegistry>,
        is_development: bool,
    ) -> anyhow::Result<Arc<Self>> {
        let loader = Arc::new(Loader::start(engine, registry.clone()).await?);
        let deploy = Self {
            serving: ServingPointer::new(Serving::new(loader.baseline().clone())),
            loader,
            offline: Offline::new(registry.clone())?,
            registry,
            admissions: Admissions::default(),
            changing: tokio::sync::Mutex::default(),
            is_started: AtomicBool::new(false),
            is_prepared: AtomicBool::new(false),
            audit_heads: watch::Sender::default(),
            audit_report: ArcSwap::default(),
            quotas: ArcSwap::default(),
            is_development,
        };
        match deploy.prepare().await {
            Err(
                DeployError::Unavailable(cause)
                | DeployError::Recorded(cause)
                | DeployError::RegistryRefused(cause),
            ) => tracing::warn!(
                cause = format!("{cause:#}"),
                policy = %deploy.serving().active.spec.policy,
                "the registry does not answer or refuses changes; trying again every second"
            ),
            other => other?,
        }
        deploy.is_started.store(true, Ordering::Release);
        deploy.save_state().await;
        Ok(Arc::new(deploy))
    }

    pub fn engine(&self) -> &Engine {
        self.loader.engine()
    }

    /// Returns the one pointer that a request reads.
    pub fn serving(&self) -> arc_swap::Guard<Arc<Serving>> {
        self.serving.load()
    }

    pub fn registry(&self) -> &Arc<dyn HostRegistry> {
        &self.registry
    }

    /// Returns a published policy with its modules compiled, from memory if it is there.
    ///
    /// # Errors
    /// Fails if the policy is not published, if the overrides do not fit it, or if the registry
    /// does not answer.
    pub async fn load(
        &self,
        state: &RegistryState,
        policy: &PolicyRef,
        overrides: Option<&Overrides>,
    ) -> Result<Arc<LoadedPolicy>, DeployError> {
        Ok(self.loader.load(state, policy, overrides).await?)
    }

    /// Reports if the registry did not answer the last time this host asked it.
    pub fn is_unavailable(&self) -> bool {
        self.offline.is_unavailable()
    }

    /// Changes that this host made while the registry was unavailable and that are not in the
    /// registry yet, oldest first.
    pub fn local_changes(&self) -> Vec<LocalChange> {
        self.offline.local_changes()
    }

    /// Changes of this host that the registry refused for good, oldest first. They are not in
    /// force.
    pub fn set_aside(&self) -> Vec<SetAside> {
        self.offline.set_aside()
    }

    /// Returns the revision of the registry that this host serves.
    pub fn revision(&self) -> i64 {
        self.serving().state.revision
    }

    /// Returns the end of the audit log to which the served state belongs.
    fn audit_head(&self) -> AuditHead {
        self.serving().state.audit_head()
    }
}
