//! Users worth following, by viewer.

use crate::clock::unix_ms;
use crate::stores::{CandidateStore, StoreError, SuggestedUser};
use moka::future::Cache;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const LIMIT_MAX: u32 = 50;
pub const LIMIT_DEFAULT: u32 = 20;
/// Upper bound; the configured TTL is checked on reading and may be shorter.
const LIFE: Duration = Duration::from_secs(3_600);
const VIEWERS_MAX: u64 = 100_000;

type Made = (Instant, Arc<Vec<SuggestedUser>>);

pub struct Suggestions {
    store: Arc<dyn CandidateStore>,
    viewers: Cache<u64, Made>,
}

impl std::fmt::Debug for Suggestions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suggestions").finish_non_exhaustive()
    }
}

impl Suggestions {
    pub fn new(store: Arc<dyn CandidateStore>) -> Self {
        Self {
            store,
            viewers: Cache::builder()
                .max_capacity(VIEWERS_MAX)
                .time_to_live(LIFE)
                .build(),
        }
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
    ) -> Result<(Arc<Vec<SuggestedUser>>, bool), StoreError> {
        if let Some((made, users)) = self.viewers.get(&viewer).await
            && made.elapsed() <= ttl
        {
            return Ok((users, true));
        }
        let query = self.store.suggested_users(viewer, unix_ms(), LIMIT_MAX);
        let users = tokio::time::timeout(timeout, query)
            .await
            .map_err(|_| StoreError {
                store: self.store.name(),
                query: "suggested_users",
                retryable: true,
                source: anyhow::anyhow!("no answer within {} ms", timeout.as_millis()),
            })??;
        let users = Arc::new(users);
        self.viewers
            .insert(viewer, (Instant::now(), users.clone()))
            .await;
        Ok((users, false))
    }
}
