//! Users worth following, by viewer.

use crate::clock::unix_ms;
use crate::stores::guard;
use crate::stores::{CandidateStore, StoreError, SuggestedUser, ValueCache, shared};
use std::sync::Arc;
use std::time::Duration;

pub const LIMIT_MAX: u32 = 50;
pub const LIMIT_DEFAULT: u32 = 20;

pub struct Suggestions {
    store: Arc<dyn CandidateStore>,
    values: Arc<dyn ValueCache>,
}

impl std::fmt::Debug for Suggestions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suggestions").finish_non_exhaustive()
    }
}

/// The key of a viewer's list in the shared cache.
pub fn key(viewer: u64) -> String {
    format!("suggest:users:{viewer}")
}

impl Suggestions {
    pub fn new(store: Arc<dyn CandidateStore>, values: Arc<dyn ValueCache>) -> Self {
        Self { store, values }
    }

    /// The viewer's list, at most `LIMIT_MAX`, and whether it came from the cache.
    ///
    /// # Errors
    /// The store failed: an error, not an empty list.
    pub async fn list(
        &self,
        viewer: u64,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<(Vec<SuggestedUser>, bool), StoreError> {
        let found = shared::get(self.values.as_ref(), "suggestions", &key(viewer)).await;
        if let Some(shared) = found
            && shared.age <= ttl
        {
            return Ok((shared.value, true));
        }
        let users = self.compute(viewer, ttl, timeout).await?;
        Ok((users, false))
    }

    /// Asks the store whatever is cached, and shares what it says.
    ///
    /// # Errors
    /// The store failed.
    pub async fn compute(
        &self,
        viewer: u64,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<Vec<SuggestedUser>, StoreError> {
        let query = self.store.suggested_users(viewer, unix_ms(), LIMIT_MAX);
        let users = guard::within(timeout, query)
            .await
            .map_err(|_| StoreError {
                store: self.store.name(),
                query: "suggested_users",
                retryable: true,
                source: anyhow::anyhow!("no answer within {} ms", timeout.as_millis()),
            })??;
        shared::put(self.values.as_ref(), &key(viewer), &users, ttl).await;
        Ok(users)
    }
}
