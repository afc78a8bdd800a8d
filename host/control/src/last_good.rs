//! Copy of the registry's state on this host's own disk: the last loaded state, with every
//! module that it needs, in `data_dir/registry/`. A host that starts while the registry does not
//! answer serves from this copy.
//!
//! The copy is used only until the registry answers for the first time. From then on the state
//! in memory is at least as new as the copy on disk, and a failed load is an error. The local
//! changes of the host are stored in the same directory ([`LocalChanges`]).

use crate::offline::{HostRegistry, LocalChanges, RegistryUnavailable};
use anyhow::Context as _;
use async_trait::async_trait;
use nova_model::artifact::{Digest, PolicyRef, Stage};
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::audit_head::AuditHead;
use nova_model::experiments::spec::ExperimentState;
use nova_model::lifecycle::{WARM_POLICIES, rollback_targets};
use nova_model::prune::StoredModule;
use nova_model::registry::{Change, RegistryState};
use nova_stores::ports::registry::{Registry, RegistryError};
use nova_support::durable_file;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const STATE_FILE: &str = "state.json";
const MODULES_DIRECTORY: &str = "modules";
/// Marker for an empty copy, because no revision is negative.
const NOTHING_KEPT: AuditHead = AuditHead {
    revision: -1,
    hash: None,
};

#[derive(Debug)]
pub struct LastGood<R> {
    registry: R,
    directory: PathBuf,
    answered: AtomicBool,
    kept: Mutex<AuditHead>,
    local_changes: Option<LocalChanges>,
}

impl<R: Registry> LastGood<R> {
    /// Opens the copy for a command. A command makes no local changes; only the host on this
    /// directory does.
    ///
    /// # Errors
    /// Fails if `data_dir/registry/` cannot be created.
    pub fn new(registry: R, data_dir: &Path) -> anyhow::Result<Self> {
        let directory = data_dir.join("registry");
        std::fs::create_dir_all(directory.join(MODULES_DIRECTORY))
            .with_context(|| format!("{}", directory.display()))?;
        Ok(Self {
            registry,
            directory,
            answered: AtomicBool::new(false),
            kept: Mutex::new(NOTHING_KEPT),
            local_changes: None,
        })
    }

    /// Opens the copy for the one host on this directory, identified by its id.
    ///
    /// # Errors
    /// Fails as [`LastGood::new`] does, and if the local changes can neither be read nor
    /// renamed.
    pub fn for_host(registry: R, data_dir: &Path, host: String) -> anyhow::Result<Self> {
        let last_good = Self::new(registry, data_dir)?;
        let local_changes = Some(LocalChanges::open(&last_good.directory, host)?);
        Ok(Self {
            local_changes,
            ..last_good
        })
    }

    /// Saves a state. Its modules are written first, so that a state on disk always has all
    /// modules that it needs.
    async fn keep(&self, state: &RegistryState) -> anyhow::Result<()> {
        // A restored registry may reach the same revision again with another state.
        if *self.kept() == state.audit_head() {
            return Ok(());
        }
        let needed = needed_modules(state);
        for digest in &needed {
            if self.kept_module(*digest).await.is_none() {
                let bytes = self.registry.module(*digest).await?;
                let bytes =
                    bytes.with_context(|| format!("the registry has no module {digest}"))?;
                durable_file::write(self.module_path(*digest), bytes).await?;
            }
        }
        durable_file::write_json(self.directory.join(STATE_FILE), state).await?;
        *self.kept() = state.audit_head();
        self.forget_all_but(&needed).await
    }

    fn kept(&self) -> MutexGuard<'_, AuditHead> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn forget_all_but(&self, needed: &BTreeSet<Digest>) -> anyhow::Result<()> {
        let mut files = tokio::fs::read_dir(self.directory.join(MODULES_DIRECTORY)).await?;
        while let Some(file) = files.next_entry().await? {
            let name = file.file_name();
            if !needed
                .iter()
                .any(|digest| *name == *file_name(*digest).as_str())
            {
                tokio::fs::remove_file(file.path()).await?;
            }
        }
        Ok(())
    }

    fn kept_state(&self) -> Option<RegistryState> {
        durable_file::read_json(&self.directory.join(STATE_FILE)).unwrap_or_else(|damaged| {
            tracing::error!(
                %damaged,
                "could not read the registry's last state from disk; serving the built-in policy"
            );
            None
        })
    }

    async fn kept_module(&self, digest: Digest) -> Option<Vec<u8>> {
        let bytes = tokio::fs::read(self.module_path(digest)).await.ok()?;
        (Digest::from_content(&bytes) == digest).then_some(bytes)
    }

    fn marked(&self, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::Unavailable(cause) if self.local_changes.is_some() => {
                RegistryError::Unavailable(cause.context(RegistryUnavailable))
            }
            other => other,
        }
    }

    fn module_path(&self, digest: Digest) -> PathBuf {
        self.directory
            .join(MODULES_DIRECTORY)
            .join(file_name(digest))
    }
}

fn file_name(digest: Digest) -> String {
    format!("{digest}.wasm")
}

/// Returns the modules that a host loads at its start. They belong to the active policy, the
/// rollback targets, the canary, the shadows and the variations of running experiments.
fn needed_modules(state: &RegistryState) -> BTreeSet<Digest> {
    let active = state.activations.last();
    let former = rollback_targets(state).take(WARM_POLICIES);
    let canary = state.canary.as_ref().map(|canary| &canary.policy);
    let varied = state
        .experiments
        .values()
        .filter(|experiment| experiment.state == ExperimentState::Running)
        .flat_map(|experiment| &experiment.spec.variations)
        .map(|variation| &variation.policy);
    let modules = |policy: &PolicyRef| {
        let spec = state.policy(policy).map(|published| &published.spec);
        spec.into_iter()
            .flat_map(|spec| {
                let modules = Stage::ALL.map(|stage| spec.stages.get(stage).module);
                modules.into_iter().chain(spec.signature)
            })
            .collect::<Vec<_>>()
    };
    active
        .into_iter()
        .chain(former)
        .chain(canary)
        .chain(&state.shadows)
        .chain(varied)
        .flat_map(modules)
        .collect()
}

#[async_trait]
impl<R: Registry> Registry for LastGood<R> {
    async fn load(&self) -> Result<RegistryState, RegistryError> {
        match self.registry.load().await {
            Ok(state) => {
                self.answered.store(true, Ordering::Release);
                if let Err(error) = self.keep(&state).await {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "could not save the registry's state on disk; a start without the registry would serve an older state"
                    );
                }
                Ok(state)
            }
            Err(RegistryError::Unavailable(cause)) if !self.answered.load(Ordering::Acquire) => {
                let Some(state) = self.kept_state() else {
                    return Err(RegistryError::Unavailable(cause));
                };
                tracing::warn!(
                    revision = state.revision,
                    cause = format!("{cause:#}"),
                    "the registry does not answer; serving the last state that was saved on disk"
                );
                Ok(state)
            }
            Err(error) => Err(error),
        }
    }

    async fn head(&self) -> Result<AuditHead, RegistryError> {
        self.registry.head().await
    }

    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        expected_revision: i64,
    ) -> Result<i64, RegistryError> {
        let applied = self.registry.apply(change, actor, expected_revision).await;
        applied.map_err(|error| self.marked(error))
    }

    async fn store_module(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let stored = self.registry.store_module(digest, bytes).await;
        stored.map_err(|error| self.marked(error))
    }

    /// Returns a module from disk if it is there. Its digest identifies it, so the source does
    /// not matter.
    async fn stored_module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        match self.kept_module(digest).await {
            Some(bytes) => Ok(Some(bytes)),
            None => {
                let module = self.registry.stored_module(digest).await;
                module.map_err(|error| self.marked(error))
            }
        }
    }

    async fn stored_modules(&self) -> Result<Vec<StoredModule>, RegistryError> {
        self.registry.stored_modules().await
    }

    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        self.registry.audit(page, limit).await
    }

    async fn present_hosts(&self, host: &str) -> Result<u64, RegistryError> {
        self.registry.present_hosts(host).await
    }

    async fn changed(&self) {
        self.registry.changed().await;
    }
}

impl<R: Registry> HostRegistry for LastGood<R> {
    fn local_changes(&self) -> Option<&LocalChanges> {
        self.local_changes.as_ref()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::deploy::DeployError;
    use crate::testing::{Fleet, active};

    #[tokio::test]
    async fn a_host_that_starts_without_the_registry_serves_the_last_saved_state() {
        let f = Fleet::new().await;
        let timeline = "timeline@1.0.0".parse().unwrap();
        f.host("here")
            .await
            .activate(&timeline, "ada")
            .await
            .unwrap();
        f.cut_off("here", true);
        let host = f.host("here").await;
        assert_eq!(active(&host), "timeline@1.0.0");
        assert_eq!(
            host.serving().warm[0].spec.policy.to_string(),
            "baseline@1.0.0"
        );
        let change = host.set_flag("enable_caching", false, "ada").await;
        assert!(
            matches!(change, Err(DeployError::Unavailable(_))),
            "{change:?}"
        );
    }

    #[tokio::test]
    async fn a_host_without_a_saved_state_serves_the_baseline_until_the_registry_answers() {
        let f = Fleet::new().await;
        f.cut_off("here", true);
        let host = f.host("here").await;
        assert_eq!(active(&host), "baseline@1.0.0");
        assert_eq!(host.serving().state, RegistryState::default());
        let following = tokio::spawn(host.clone().follow_registry());
        f.cut_off("here", false);
        while host.serving().state.activations.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(active(&host), "baseline@1.0.0");
        following.abort();
    }

    #[tokio::test]
    async fn a_registry_that_answered_once_and_then_fails_is_an_error_and_the_disk_is_not_used() {
        let f = Fleet::new().await;
        drop(f.host("here").await);
        let registry = f.last_good("here");
        registry.load().await.unwrap();
        f.cut_off("here", true);
        assert!(registry.load().await.is_err());
        assert!(f.last_good("here").load().await.is_ok());
    }

    #[tokio::test]
    async fn a_damaged_state_or_module_on_disk_is_not_used() {
        let f = Fleet::new().await;
        drop(f.host("here").await);
        let digest = *needed_modules(&f.registry.load().await.unwrap())
            .first()
            .unwrap();
        let registry = f.last_good("here");
        let path = registry.module_path(digest);
        assert!(path.is_file());
        std::fs::write(&path, b"other bytes").unwrap();
        assert!(registry.module(digest).await.unwrap().is_some());
        f.cut_off("here", true);
        assert!(registry.module(digest).await.is_err());
        let state = registry.directory.join(STATE_FILE);
        let text = std::fs::read_to_string(&state).unwrap();
        std::fs::write(&state, text.replace("timeline", "timelime")).unwrap();
        assert!(registry.load().await.is_err());
    }
}
