//! Suggested users: for each viewer, a cached list of users to follow.

use crate::flights::Flights;
use nova_model::user::SuggestedUser;
use nova_stores::guard;
use nova_stores::ports::{CandidateStore, StoreError, ValueCache};
use nova_stores::shared;
use nova_stores::shared::Shared;
use nova_support::clock::unix_ms;
use std::sync::Arc;
use std::time::Duration;

pub const LIMIT_MAX: u32 = 50;
pub const LIMIT_DEFAULT: u32 = 20;
/// Largest number of viewers whose lists are computed at the same time.
const FLIGHTS_MAX: u64 = 100_000;

pub struct Suggestions {
    store: Arc<dyn CandidateStore>,
    values: Arc<dyn ValueCache>,
    flights: Flights,
}

impl std::fmt::Debug for Suggestions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suggestions").finish_non_exhaustive()
    }
}

/// Returns the key of a viewer's list in the shared cache.
pub fn key(viewer: u64) -> String {
    format!("suggest:users:{viewer}")
}

impl Suggestions {
    pub fn new(store: Arc<dyn CandidateStore>, values: Arc<dyn ValueCache>) -> Self {
        Self {
            store,
            values,
            flights: Flights::new(FLIGHTS_MAX),
        }
    }

    /// Returns the viewer's list, with at most `LIMIT_MAX` users, and true if it came from the
    /// cache.
    ///
    /// # Errors
    /// The store failed. This is an error and not an empty list.
    pub async fn list(
        &self,
        viewer: u64,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<(Vec<SuggestedUser>, bool), StoreError> {
        if let Some(users) = self.known(viewer, ttl).await {
            return Ok((users, true));
        }
        // If several requests miss together, one computes the list and the others use its
        // result.
        let flight = self.flights.join(viewer, timeout).await;
        if flight.waited
            && let Some(users) = self.known(viewer, ttl).await
        {
            return Ok((users, true));
        }
        let users = self.compute(viewer, ttl, timeout).await?;
        Ok((users, false))
    }

    async fn known(&self, viewer: u64, ttl: Duration) -> Option<Vec<SuggestedUser>> {
        let found = shared::get(self.values.as_ref(), "suggestions", &key(viewer)).await;
        let shared = found.filter(|shared: &Shared<Vec<SuggestedUser>>| shared.age <= ttl)?;
        Some(shared.value)
    }

    /// Queries the store even if a list is cached, and shares the result.
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
