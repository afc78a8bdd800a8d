//! The embedded stores: SQLite and in-process caches, all in one data directory.

use super::Wired;
use crate::config::Config;
use crate::secret;
use crate::store_set::StoreSet;
use nova_stores::embedded::EmbeddedStore;
use nova_stores::embedded::cache::ProcessCache;
use nova_stores::embedded::lease::SoleHost;
use nova_stores::embedded::registry::SqliteRegistry;
use nova_stores::embedded::seen::ProcessSeen;
use nova_stores::ports::EventSink as _;
use nova_stores::spool::Spool;
use nova_support::metrics::METRICS;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(super) async fn open(config: &Config) -> anyhow::Result<Wired> {
    let data_dir = &config.data_dir;
    let store = open_store(data_dir).await?;
    let written_through = store.written_through().await?;
    let spool = Spool::open(data_dir, config.spool_bytes_max, written_through).await?;
    let registry = SqliteRegistry::open(&store).await?;
    let cache = ProcessCache::new(config.cache_mb << 20);
    let stores = StoreSet {
        candidates: Arc::new(store.clone()),
        relational: Arc::new(store.clone()),
        exposures: Arc::new(store.clone()),
        sink: Arc::new(store.clone()),
        values: Arc::new(cache.clone()),
        cache: Arc::new(cache),
        lease: Arc::new(SoleHost),
        claims: None,
        seen: Arc::new(ProcessSeen::new(spool.clone(), store.clone())),
    };
    Ok(Wired {
        stores,
        registry: Arc::new(registry.with_audit_keys(secret::audit_keys(config)?)),
        spool,
        embedded: Some(store),
        background: Box::new(|_, _| Ok(Vec::new())),
    })
}

/// Opens the embedded store, with its queries counted and timed.
///
/// # Errors
/// The file cannot be opened.
pub async fn open_store(data_dir: &Path) -> anyhow::Result<EmbeddedStore> {
    let observer = Arc::new(|query: &'static str, took: Duration, ok: bool| {
        METRICS.observe_store("sqlite", query, took, ok)
    });
    EmbeddedStore::open_observed(data_dir, observer).await
}
