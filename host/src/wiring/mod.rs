//! Which stores a host runs on: the embedded set, or the real stack where its four URLs are configured.
//! Everything above knows only the interfaces.

mod deletions;
pub mod embedded;
mod stack;

use crate::app::{App, StoreSet};
use crate::config::Config;
use crate::events::spool::Spool;
use crate::policy::registry::Registry;
use crate::stores::embedded::EmbeddedStore;
use crate::stores::embedded::registry::SqliteRegistry;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Starts what runs beside a host on these stores, and gives what has to finish before the host ends.
/// A server that does not answer yet is no error; settings that cannot work are.
pub type Beside =
    Box<dyn FnOnce(&Arc<App>, &CancellationToken) -> anyhow::Result<Vec<JoinHandle<()>>> + Send>;

/// One complete set of stores.
pub struct Wired {
    pub stores: StoreSet,
    pub registry: Arc<dyn Registry>,
    pub spool: Spool,
    /// Where there is one, this process deletes what no window reaches any more.
    pub embedded: Option<EmbeddedStore>,
    pub beside: Beside,
}

impl std::fmt::Debug for Wired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wired").finish_non_exhaustive()
    }
}

/// # Errors
/// When the data directory cannot be used, or a URL is none. Servers that do not answer are no error: they may later.
pub async fn connect(config: &Config) -> anyhow::Result<Wired> {
    match config.stores.stack() {
        None => embedded::open(config).await,
        Some(urls) => stack::connect(config, urls).await,
    }
}

/// The registry alone, for commands that change it without a host.
///
/// # Errors
/// As [`connect`].
pub async fn registry(config: &Config) -> anyhow::Result<Arc<dyn Registry>> {
    match config.stores.stack() {
        None => {
            let store = embedded::open_store(&config.data_dir).await?;
            Ok(Arc::new(SqliteRegistry::open(&store).await?))
        }
        Some(urls) => stack::registry(config, urls),
    }
}
