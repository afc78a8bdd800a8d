//! A test fleet: several hosts that share one registry, each of which can be disconnected from
//! it.

use super::deploy::Deploy;
use super::last_good::LastGood;
use async_trait::async_trait;
use nova_model::artifact::Digest;
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::registry::{Change, RegistryState};
use nova_policy::engine::Engine;
use nova_stores::embedded::EmbeddedStore;
use nova_stores::embedded::registry::SqliteRegistry;
use nova_stores::ports::registry::{Registry, RegistryError};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A registry that a test can make unavailable.
#[derive(Debug, Clone)]
pub struct Distant {
    registry: SqliteRegistry,
    cut_off: Arc<AtomicBool>,
}

impl Distant {
    fn connected(&self) -> Result<&SqliteRegistry, RegistryError> {
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
        self.connected()?.load().await
    }

    async fn revision(&self) -> Result<i64, RegistryError> {
        self.connected()?.revision().await
    }

    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        revision: i64,
    ) -> Result<i64, RegistryError> {
        self.connected()?.apply(change, actor, revision).await
    }

    async fn module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        self.connected()?.module(digest).await
    }

    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        self.connected()?.audit(page, limit).await
    }
}

/// Hosts by name, each with its own data directory.
#[derive(Debug)]
pub struct Fleet {
    pub registry: SqliteRegistry,
    directory: tempfile::TempDir,
    cut_off: Mutex<BTreeMap<String, Arc<AtomicBool>>>,
}

impl Fleet {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path()).await.unwrap();
        Self {
            registry: SqliteRegistry::open(&store).await.unwrap(),
            directory,
            cut_off: Mutex::default(),
        }
    }

    pub fn data_dir(&self, host: &str) -> PathBuf {
        self.directory.path().join(host)
    }

    pub fn cut_off(&self, host: &str, cut_off: bool) {
        self.switch(host).store(cut_off, Ordering::Release);
    }

    fn switch(&self, host: &str) -> Arc<AtomicBool> {
        let mut switches = self.cut_off.lock().unwrap();
        switches.entry(host.to_owned()).or_default().clone()
    }

    pub fn last_good(&self, host: &str) -> LastGood<Distant> {
        let registry = Distant {
            registry: self.registry.clone(),
            cut_off: self.switch(host),
        };
        LastGood::for_host(registry, &self.data_dir(host), host.to_owned()).unwrap()
    }

    pub async fn host(&self, host: &str) -> Arc<Deploy> {
        let engine = Engine::start().unwrap();
        Deploy::start(engine, Arc::new(self.last_good(host)), false)
            .await
            .unwrap()
    }

    /// Returns the whole audit log, oldest entry first.
    pub async fn log(&self) -> Vec<AuditEntry> {
        self.registry.audit(AuditPage::OLDEST, 1_000).await.unwrap()
    }
}

pub fn active(host: &Deploy) -> String {
    host.serving().active.spec.policy.to_string()
}
