//! The viewers' attributes that cohorts ask for, cached for a minute.

use moka::future::Cache;
use nova_control::routing::Lookup;
use nova_model::user::ViewerAttributes;
use nova_stores::guard;
use nova_stores::ports::{RelationalStore, StoreError};
use std::sync::Arc;
use std::time::Duration;

/// Time after which cohorts see a changed user row.
const LIFE: Duration = Duration::from_secs(60);
const VIEWERS_MAX: u64 = 200_000;

pub struct Attributes {
    store: Arc<dyn RelationalStore>,
    cache: Cache<u64, Option<Arc<ViewerAttributes>>>,
}

impl std::fmt::Debug for Attributes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attributes").finish_non_exhaustive()
    }
}

impl Attributes {
    pub fn new(store: Arc<dyn RelationalStore>) -> Self {
        let cache = Cache::builder().max_capacity(VIEWERS_MAX);
        Self {
            store,
            cache: cache.time_to_live(LIFE).build(),
        }
    }

    /// Returns the viewer's attributes. The result is `Known(None)` for an unknown viewer.
    pub async fn of_viewer(&self, viewer: u64, timeout: Duration) -> Lookup {
        let load = async {
            let attributes = self.store.viewer_attributes(viewer).await?;
            Ok::<_, StoreError>(attributes.map(Arc::new))
        };
        match guard::within(timeout, self.cache.try_get_with(viewer, load)).await {
            Ok(Ok(attributes)) => Lookup::Known(attributes),
            Ok(Err(error)) => {
                tracing::warn!(%error, "could not read the viewer's attributes; cohorts that need them are skipped");
                Lookup::Unavailable
            }
            Err(_) => {
                tracing::warn!(
                    "the query for the viewer's attributes timed out; cohorts that need them are skipped"
                );
                Lookup::Unavailable
            }
        }
    }
}
