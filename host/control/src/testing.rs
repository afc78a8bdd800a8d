//! A test fleet: several hosts that share one registry, each of which can be disconnected from
//! it.

use super::deploy::Deploy;
use super::last_good::LastGood;
use async_trait::async_trait;
use nova_model::artifact::Digest;
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::audit_head::AuditHead;
use nova_model::prune::StoredModule;
use nova_model::registry::{Change, RegistryState};
use nova_policy::engine::Engine;
use nova_stores::embedded::EmbeddedStore;
use nova_stores::embedded::registry::SqliteRegistry;
use nova_stores::ports::registry::{Registry, RegistryError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// What a host's calls to the registry meet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Way {
    #[default]
    Open,
    CutOff,
    /// The registry can be read and takes no change for now, as during a failover.
    ReadOnly,
    /// The registry can be read and refuses every change, as without a grant.
    Refusing,
    /// The registry refuses every change but entries of the audit log alone.
    RefusingAllButEntries,
}

/// A registry that a test can make unavailable.
#[derive(Debug, Clone)]
pub struct Distant {
    registry: Arc<Mutex<SqliteRegistry>>,
    way: Arc<Mutex<Way>>,
    present: Arc<Mutex<BTreeSet<String>>>,
}

impl Distant {
    fn connected(&self) -> Result<SqliteRegistry, RegistryError> {
        if *self.way.lock().unwrap() == Way::CutOff {
            Err(RegistryError::Unavailable(anyhow::anyhow!("cut off")))
        } else {
            Ok(self.registry.lock().unwrap().clone())
        }
    }
}

#[async_trait]
impl Registry for Distant {
    async fn load(&self) -> Result<RegistryState, RegistryError> {
        self.connected()?.load().await
    }

    async fn head(&self) -> Result<AuditHead, RegistryError> {
        self.connected()?.head().await
    }

    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        revision: i64,
    ) -> Result<i64, RegistryError> {
        let way = *self.way.lock().unwrap();
        let refused = || RegistryError::Refused(anyhow::anyhow!("permission denied"));
        match (way, change) {
            (Way::ReadOnly, _) => {
                return Err(RegistryError::Unavailable(anyhow::anyhow!("read-only")));
            }
            (Way::RefusingAllButEntries, Change::Dropped { .. }) => {}
            (Way::Refusing | Way::RefusingAllButEntries, _) => return Err(refused()),
            (Way::Open | Way::CutOff, _) => {}
        }
        self.connected()?.apply(change, actor, revision).await
    }

    async fn store_module(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        self.connected()?.store_module(digest, bytes).await
    }

    async fn stored_module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        self.connected()?.stored_module(digest).await
    }

    async fn stored_modules(&self) -> Result<Vec<StoredModule>, RegistryError> {
        self.connected()?.stored_modules().await
    }

    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        self.connected()?.audit(page, limit).await
    }

    async fn present_hosts(&self, host: &str) -> Result<u64, RegistryError> {
        self.connected()?;
        let mut present = self.present.lock().unwrap();
        present.insert(host.to_owned());
        Ok(present.len() as u64)
    }
}

/// Hosts by name, each with its own data directory.
#[derive(Debug)]
pub struct Fleet {
    pub registry: SqliteRegistry,
    /// The registry that the hosts reach.
    reached: Arc<Mutex<SqliteRegistry>>,
    directory: tempfile::TempDir,
    ways: Mutex<BTreeMap<String, Arc<Mutex<Way>>>>,
    /// Hosts that the registry saw. A test adds and removes them.
    pub present: Arc<Mutex<BTreeSet<String>>>,
}

impl Fleet {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(directory.path()).await.unwrap();
        let registry = SqliteRegistry::open(&store).await.unwrap();
        Self {
            reached: Arc::new(Mutex::new(registry.clone())),
            registry,
            directory,
            ways: Mutex::default(),
            present: Arc::default(),
        }
    }

    pub fn data_dir(&self, host: &str) -> PathBuf {
        self.directory.path().join(host)
    }

    /// Puts another registry in the place of this fleet's, as a restored backup does.
    pub fn restore(&self, other: &Self) {
        *self.reached.lock().unwrap() = other.registry.clone();
    }

    pub fn cut_off(&self, host: &str, cut_off: bool) {
        let way = if cut_off { Way::CutOff } else { Way::Open };
        self.set_way(host, way);
    }

    pub fn set_way(&self, host: &str, way: Way) {
        *self.way(host).lock().unwrap() = way;
    }

    fn way(&self, host: &str) -> Arc<Mutex<Way>> {
        let mut ways = self.ways.lock().unwrap();
        ways.entry(host.to_owned()).or_default().clone()
    }

    pub fn last_good(&self, host: &str) -> LastGood<Distant> {
        let registry = Distant {
            registry: self.reached.clone(),
            way: self.way(host),
            present: self.present.clone(),
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
