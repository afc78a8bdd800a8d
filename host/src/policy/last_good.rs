//! A registry behind which stands this host's own disk: the last state that was loaded, with every
//! module it needs, in `data_dir/registry/`. A host that starts while the registry does not answer
//! serves by that.
//!
//! Only until the registry answers for the first time: from then on the state in memory is newer
//! than the one on disk can be, and what fails is an error. Changes always go to the registry.

use super::artifact::{Digest, PerStage, PolicyRef, Stage};
use super::deploy::WARM_POLICIES;
use super::lifecycle::rollback_targets;
use super::registry::{AuditEntry, Change, Registry, RegistryError, RegistryState};
use crate::experiments::spec::ExperimentState;
use anyhow::Context as _;
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// The digest of what follows, a line break, and the state as JSON.
const STATE_FILE: &str = "state.json";
const MODULES_DIRECTORY: &str = "modules";
/// No revision is negative.
const NOTHING_KEPT: i64 = -1;

#[derive(Debug)]
pub struct LastGood<R> {
    registry: R,
    directory: PathBuf,
    answered: AtomicBool,
    kept_revision: AtomicI64,
}

impl<R: Registry> LastGood<R> {
    /// # Errors
    /// When `data_dir/registry/` cannot be made.
    pub fn new(registry: R, data_dir: &Path) -> anyhow::Result<Self> {
        let directory = data_dir.join("registry");
        std::fs::create_dir_all(directory.join(MODULES_DIRECTORY))
            .with_context(|| format!("{}", directory.display()))?;
        Ok(Self {
            registry,
            directory,
            answered: AtomicBool::new(false),
            kept_revision: AtomicI64::new(NOTHING_KEPT),
        })
    }

    /// Modules first: a state on disk has all that it needs.
    async fn keep(&self, state: &RegistryState) -> anyhow::Result<()> {
        if self.kept_revision.load(Ordering::Acquire) == state.revision {
            return Ok(());
        }
        let needed = needed_modules(state);
        for digest in &needed {
            if self.kept_module(*digest).await.is_none() {
                let bytes = self.registry.module(*digest).await?;
                let bytes =
                    bytes.with_context(|| format!("the registry has no module {digest}"))?;
                write(self.module_path(*digest), bytes).await?;
            }
        }
        let json = serde_json::to_string(state)?;
        let text = format!("{}\n{json}", Digest::of(json.as_bytes()));
        write(self.directory.join(STATE_FILE), text.into_bytes()).await?;
        self.kept_revision.store(state.revision, Ordering::Release);
        self.forget_all_but(&needed).await
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

    /// `None` when there is none, or when it is not as it was written.
    async fn kept_state(&self) -> Option<RegistryState> {
        let text = tokio::fs::read_to_string(self.directory.join(STATE_FILE))
            .await
            .ok()?;
        let (digest, json) = text.split_once('\n')?;
        if digest.parse() != Ok(Digest::of(json.as_bytes())) {
            tracing::error!(
                "the registry's last state on disk is damaged; the built-in policy serves"
            );
            return None;
        }
        serde_json::from_str(json).ok()
    }

    async fn kept_module(&self, digest: Digest) -> Option<Vec<u8>> {
        let bytes = tokio::fs::read(self.module_path(digest)).await.ok()?;
        (Digest::of(&bytes) == digest).then_some(bytes)
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

/// Of what a host loads when it starts: the active policy, those it could roll back to, those on
/// trial, and the variations of running experiments.
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
        let stages: Option<&PerStage<_>> =
            state.policy(policy).map(|published| &published.spec.stages);
        stages
            .into_iter()
            .flat_map(|stages| Stage::ALL.map(|stage| stages.get(stage).module))
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

/// Whole or not at all: a reader sees the old file or the new one, also after a power cut.
async fn write(path: PathBuf, bytes: Vec<u8>) -> anyhow::Result<()> {
    let write = move || {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&bytes)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        std::fs::File::open(directory)?.sync_all()?;
        anyhow::Ok(())
    };
    tokio::task::spawn_blocking(write).await?
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
                        "the registry's state could not be kept on disk; a start without the registry would serve an older one"
                    );
                }
                Ok(state)
            }
            Err(RegistryError::Unavailable(cause)) if !self.answered.load(Ordering::Acquire) => {
                let Some(state) = self.kept_state().await else {
                    return Err(RegistryError::Unavailable(cause));
                };
                tracing::warn!(
                    revision = state.revision,
                    cause = format!("{cause:#}"),
                    "the registry does not answer; serving the last state it gave"
                );
                Ok(state)
            }
            Err(error) => Err(error),
        }
    }

    async fn revision(&self) -> Result<i64, RegistryError> {
        self.registry.revision().await
    }

    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        expected_revision: i64,
    ) -> Result<i64, RegistryError> {
        self.registry.apply(change, actor, expected_revision).await
    }

    /// From disk where it is there: a module is its digest, wherever it comes from.
    async fn module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        match self.kept_module(digest).await {
            Some(bytes) => Ok(Some(bytes)),
            None => self.registry.module(digest).await,
        }
    }

    async fn audit(&self, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        self.registry.audit(limit).await
    }

    async fn changed(&self) {
        self.registry.changed().await;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::policy::deploy::{Deploy, DeployError};
    use crate::policy::engine::Engine;
    use crate::stores::embedded::EmbeddedStore;
    use crate::stores::embedded::registry::SqliteRegistry;
    use std::sync::Arc;

    /// A registry that can be cut off.
    #[derive(Debug, Clone)]
    struct Distant {
        registry: SqliteRegistry,
        cut_off: Arc<AtomicBool>,
    }

    impl Distant {
        async fn new(data_dir: &Path) -> Self {
            let store = EmbeddedStore::open(data_dir).await.unwrap();
            Self {
                registry: SqliteRegistry::open(&store).await.unwrap(),
                cut_off: Arc::default(),
            }
        }

        fn reach(&self) -> Result<&SqliteRegistry, RegistryError> {
            if self.cut_off.load(Ordering::Acquire) {
                Err(RegistryError::Unavailable(anyhow::anyhow!("cut off")))
            } else {
                Ok(&self.registry)
            }
        }
    }

    #[async_trait]
    impl Registry for Distant {
        async fn load(&self) -> Result<RegistryState, RegistryError> {
            self.reach()?.load().await
        }

        async fn revision(&self) -> Result<i64, RegistryError> {
            self.reach()?.revision().await
        }

        async fn apply(
            &self,
            change: &Change,
            actor: &str,
            revision: i64,
        ) -> Result<i64, RegistryError> {
            self.reach()?.apply(change, actor, revision).await
        }

        async fn module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
            self.reach()?.module(digest).await
        }

        async fn audit(&self, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
            self.reach()?.audit(limit).await
        }
    }

    struct Fixture {
        data_dir: tempfile::TempDir,
        distant: Distant,
    }

    impl Fixture {
        async fn new() -> Self {
            let data_dir = tempfile::tempdir().unwrap();
            let distant = Distant::new(data_dir.path()).await;
            Self { data_dir, distant }
        }

        fn last_good(&self) -> LastGood<Distant> {
            LastGood::new(self.distant.clone(), self.data_dir.path()).unwrap()
        }

        async fn host(&self) -> Arc<Deploy> {
            let engine = Engine::start().unwrap();
            Deploy::start(engine, Arc::new(self.last_good()), false)
                .await
                .unwrap()
        }

        fn cut_off(&self, cut_off: bool) {
            self.distant.cut_off.store(cut_off, Ordering::Release);
        }
    }

    fn active(host: &Deploy) -> String {
        host.serving().active.spec.policy.to_string()
    }

    #[tokio::test]
    async fn a_host_that_starts_while_the_registry_is_cut_off_serves_what_it_last_gave() {
        let f = Fixture::new().await;
        let timeline = "timeline@1.0.0".parse().unwrap();
        f.host().await.activate(&timeline, "ada").await.unwrap();
        f.cut_off(true);
        let host = f.host().await;
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
    async fn a_host_that_never_saw_a_registry_serves_the_built_in_baseline_until_it_answers() {
        let f = Fixture::new().await;
        f.cut_off(true);
        let host = f.host().await;
        assert_eq!(active(&host), "baseline@1.0.0");
        assert_eq!(host.serving().state, RegistryState::default());
        let following = tokio::spawn(host.clone().follow_registry());
        f.cut_off(false);
        while host.serving().state.activations.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(active(&host), "baseline@1.0.0");
        following.abort();
    }

    #[tokio::test]
    async fn a_registry_that_answered_once_and_then_fails_is_an_error_and_not_the_disk() {
        let f = Fixture::new().await;
        drop(f.host().await);
        let registry = f.last_good();
        registry.load().await.unwrap();
        f.cut_off(true);
        assert!(registry.load().await.is_err());
        assert!(f.last_good().load().await.is_ok());
    }

    #[tokio::test]
    async fn a_damaged_state_or_module_on_disk_is_not_believed() {
        let f = Fixture::new().await;
        drop(f.host().await);
        let digest = *needed_modules(&f.distant.load().await.unwrap())
            .first()
            .unwrap();
        let registry = f.last_good();
        let path = registry.module_path(digest);
        assert!(path.is_file());
        std::fs::write(&path, b"other bytes").unwrap();
        assert!(registry.module(digest).await.unwrap().is_some());
        f.cut_off(true);
        assert!(registry.module(digest).await.is_err());
        let state = registry.directory.join(STATE_FILE);
        let text = std::fs::read_to_string(&state).unwrap();
        std::fs::write(&state, text.replace("timeline", "timelime")).unwrap();
        assert!(registry.load().await.is_err());
    }
}
