//! Choice of the stores that a host runs on: the embedded stores, or the real stack if its four
//! URLs are configured. All code above knows only the interfaces.

mod deletions;
pub mod embedded;
mod stack;

use crate::app::App;
use crate::config::Config;
use crate::store_set::StoreSet;
use nova_control::offline::HostRegistry;
use nova_model::audit_key::AuditKeys;
use nova_stores::embedded::EmbeddedStore;
use nova_stores::embedded::registry::SqliteRegistry;
use nova_stores::spool::Spool;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Starts the background tasks that these stores need, and returns those that must finish before
/// the host ends. A server that does not answer yet is not an error, but settings that cannot
/// work are.
pub type BackgroundTasks =
    Box<dyn FnOnce(&Arc<App>, &CancellationToken) -> anyhow::Result<Vec<JoinHandle<()>>> + Send>;

/// One complete set of stores.
pub struct Wired {
    pub stores: StoreSet,
    pub registry: Arc<dyn HostRegistry>,
    pub spool: Spool,
    /// The embedded store, if there is one. This process deletes its expired rows.
    pub embedded: Option<EmbeddedStore>,
    pub background: BackgroundTasks,
}

impl std::fmt::Debug for Wired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wired").finish_non_exhaustive()
    }
}

/// Opens the stores that the configuration names.
///
/// # Errors
/// The data directory cannot be used, or a URL is invalid. A server that does not answer is not
/// an error, because it may answer later.
pub async fn connect(config: &Config) -> anyhow::Result<Wired> {
    match config.stores.stack() {
        None => embedded::open(config).await,
        Some(urls) => stack::connect(config, urls).await,
    }
}

/// Opens only the registry, for commands that read or change it without a host. `audit_keys`
/// authenticate the changes that a command makes.
///
/// # Errors
/// Same as [`connect`].
pub async fn registry(
    config: &Config,
    audit_keys: AuditKeys,
) -> anyhow::Result<Arc<dyn HostRegistry>> {
    match config.stores.stack() {
        None => {
            let store = embedded::open_store(&config.data_dir).await?;
            let registry = SqliteRegistry::open(&store).await?;
            Ok(Arc::new(registry.with_audit_keys(audit_keys)))
        }
        Some(urls) => stack::registry(config, urls, audit_keys),
    }
}
