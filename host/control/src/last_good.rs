//! Copy of the registry's state on this host's own disk: the last loaded state, with the modules
//! that it needs, in `data_dir/registry/`. A host that starts while the registry does not answer
//! serves from this copy. The state is on disk before a change that was made on this host is
//! answered. The task that follows the registry has it saved in the background.
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const STATE_FILE: &str = "state.json";
const MODULES_DIRECTORY: &str = "modules";
#[derive(Debug)]
pub struct LastGood<R> {
    registry: R,
    directory: PathBuf,
    answered: AtomicBool,
    /// The state to keep, and how many were noted up to it.
    noted: Mutex<(u64, Option<Arc<RegistryState>>)>,
    /// Number of the noted state that is on disk. Held while files are replaced or removed, and
    /// never while the registry is asked.
    kept: tokio::sync::Mutex<u64>,
    /// Modules whose file was compared with their digest.
    compared: Mutex<BTreeSet<Digest>>,
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
            noted: Mutex::default(),
            kept: tokio::sync::Mutex::default(),
            compared: Mutex::default(),
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

    /// Saves the noted state. The modules of its active policy are written first, so that a start
    /// from disk has a policy to serve. The others follow ([`HostRegistry::save_modules`]), because
    /// one that cannot be read must not delay the state.
    async fn keep(&self) -> anyhow::Result<()> {
        let (number, Some(state)) = self.noted() else {
            return Ok(());
        };
        let needed = modules_of(&state, state.activations.last());
        loop {
            if *self.kept.lock().await >= number {
                return Ok(());
            }
            for digest in &needed {
                self.keep_module(*digest).await?;
            }
            let mut kept = self.kept.lock().await;
            if *kept >= number {
                return Ok(());
            }
            // A clean-up for a newer state may have removed one.
            if needed
                .iter()
                .all(|digest| self.module_path(*digest).is_file())
            {
                durable_file::write_json(self.directory.join(STATE_FILE), &*state).await?;
                *kept = number;
                return Ok(());
            }
        }
    }

    /// Saves a module, unless it is on disk. It is fetched without a lock.
    async fn keep_module(&self, digest: Digest) -> anyhow::Result<()> {
        if self.compared().contains(&digest) && self.module_path(digest).is_file() {
            return Ok(());
        }
        if self.kept_module(digest).await.is_none() {
            let bytes = self.registry.module(digest).await?;
            let bytes = bytes.with_context(|| format!("the registry has no module {digest}"))?;
            durable_file::write(self.module_path(digest), bytes).await?;
        }
        self.compared().insert(digest);
        Ok(())
    }

    fn noted(&self) -> (u64, Option<Arc<RegistryState>>) {
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.clone()
    }

    fn compared(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.compared.lock().unwrap_or_else(PoisonError::into_inner)
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
        let path = self.module_path(digest);
        let read = move || {
            let bytes = std::fs::read(path).ok()?;
            (Digest::from_content(&bytes) == digest).then_some(bytes)
        };
        tokio::task::spawn_blocking(read).await.ok()?
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
    active
        .into_iter()
        .chain(former)
        .chain(canary)
        .chain(&state.shadows)
        .chain(varied)
        .flat_map(|policy| modules_of(state, Some(policy)))
        .collect()
}

/// Returns the modules of a policy, with its signature.
fn modules_of(state: &RegistryState, policy: Option<&PolicyRef>) -> Vec<Digest> {
    let published = policy.and_then(|policy| state.policy(policy));
    let spec = published.map(|published| &published.spec);
    spec.into_iter()
        .flat_map(|spec| {
            let modules = Stage::ALL.map(|stage| spec.stages.get(stage).module);
            modules.into_iter().chain(spec.signature)
        })
        .collect()
}

#[async_trait]
impl<R: Registry> Registry for LastGood<R> {
    async fn load(&self) -> Result<RegistryState, RegistryError> {
        match self.registry.load().await {
            Ok(state) => {
                self.answered.store(true, Ordering::Release);
                Ok(state)
            }
            // A registry that cannot be read is as good as none.
            Err(cause) if !self.answered.load(Ordering::Acquire) => {
                let Some(state) = self.kept_state() else {
                    return Err(cause);
                };
                tracing::warn!(
                    revision = state.revision,
                    %cause,
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

    /// Returns a module as [`Registry::module`] does, and keeps it on the host's disk, so that it
    /// is transferred once.
    async fn module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        if let Some(bytes) = self.kept_module(digest).await {
            return Ok(Some(bytes));
        }
        let module = self.registry.module(digest).await;
        let module = module.map_err(|error| self.marked(error))?;
        if let Some(bytes) = &module
            && self.local_changes.is_some()
            && let Err(error) = durable_file::write(self.module_path(digest), bytes.clone()).await
        {
            tracing::debug!(
                module = %digest,
                error = format!("{error:#}"),
                "could not keep a module on disk; it is transferred again when it is needed"
            );
        }
        Ok(module)
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

#[async_trait]
impl<R: Registry> HostRegistry for LastGood<R> {
    fn local_changes(&self) -> Option<&LocalChanges> {
        self.local_changes.as_ref()
    }

    fn note_state(&self, state: &RegistryState) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        // A restored registry may reach the same revision again with another state.
        let known = noted.1.as_ref().map(|known| known.audit_head());
        if known != Some(state.audit_head()) {
            *noted = (noted.0 + 1, Some(Arc::new(state.clone())));
        }
    }

    async fn save_state(&self) -> anyhow::Result<()> {
        self.keep().await
    }

    async fn save_modules(&self) -> bool {
        let (_, Some(state)) = self.noted() else {
            return true;
        };
        let needed = needed_modules(&state);
        let saved = needed.iter().map(|digest| async move {
            let saved = self.keep_module(*digest).await;
            if let Err(error) = &saved {
                tracing::warn!(
                    module = %digest,
                    error = format!("{error:#}"),
                    "could not save a module on disk; a start without the registry would do without it"
                );
            }
            saved.is_ok()
        });
        let mut is_whole = futures::future::join_all(saved)
            .await
            .into_iter()
            .all(|ok| ok);
        let kept = self.kept.lock().await;
        // A state that was noted meanwhile may need others, and so does the state on disk.
        let (number, newest) = self.noted();
        if *kept == number
            && let Some(newest) = newest
            && let Err(error) = self.forget_all_but(&needed_modules(&newest)).await
        {
            is_whole = false;
            tracing::warn!(
                error = format!("{error:#}"),
                "could not remove modules from disk that are not needed any more; trying again"
            );
        }
        is_whole
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
        f.cut_off("here", true);
        assert!(registry.module(digest).await.is_err());
        f.cut_off("here", false);
        assert!(registry.module(digest).await.unwrap().is_some());
        f.cut_off("here", true);
        assert!(registry.module(digest).await.unwrap().is_some(), "repaired");
        let state = registry.directory.join(STATE_FILE);
        let text = std::fs::read_to_string(&state).unwrap();
        std::fs::write(&state, text.replace("timeline", "timelime")).unwrap();
        assert!(registry.load().await.is_err());
    }
}
