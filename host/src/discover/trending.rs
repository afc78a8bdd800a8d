//! Trending posts by window. One host queries the store and shares the list with all others. If
//! a refresh fails, the last list is served and marked as degraded; if there has never been one,
//! the request fails.

use arc_swap::ArcSwapOption;
use nova_model::time::rfc3339;
use nova_stores::guard;
use nova_stores::ports::{CandidateStore, StoreError, ValueCache};
use nova_stores::shared;
use nova_stores::shared::Shared;
use nova_support::clock::unix_ms;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

pub const LIMIT_MAX: u32 = 200;
/// Time for which the last list may be served if the store cannot make a new one.
const LAST_LIFE: Duration = Duration::from_secs(24 * 3_600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    Hour,
    Day,
    Week,
}

impl Window {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "1h" => Some(Window::Hour),
            "24h" => Some(Window::Day),
            "7d" => Some(Window::Week),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Window::Hour => "1h",
            Window::Day => "24h",
            Window::Week => "7d",
        }
    }

    pub const ALL: [Window; 3] = [Window::Hour, Window::Day, Window::Week];

    /// Returns the key of the window's list in the shared cache.
    pub(super) fn key(self) -> String {
        format!("hot:posts:{}", self.as_str())
    }

    /// Returns the key of the copy that is served if the list cannot be refreshed.
    pub(super) fn last_key(self) -> String {
        format!("last:posts:{}", self.as_str())
    }

    fn hours(self) -> u32 {
        match self {
            Window::Hour => 1,
            Window::Day => 24,
            Window::Week => 7 * 24,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrendingItem {
    pub post_id: u64,
    pub author_id: u64,
    /// likes + 2·comments + 3·shares in the window.
    pub engagement_count: u64,
    pub views: u64,
    pub likes: u64,
    pub comments: u64,
    pub shares: u64,
    /// First hour of the window.
    pub window_start: String,
}

/// A trending list, and its origin.
#[derive(Debug, Clone)]
pub struct TrendingList {
    pub posts: Arc<Vec<TrendingItem>>,
    pub cache_hit: bool,
    /// Name of the store that did not answer, if this is an older list.
    pub degraded: Option<&'static str>,
}

type FetchedList = (Instant, Arc<Vec<TrendingItem>>);

#[derive(Default)]
struct Slot {
    list: ArcSwapOption<FetchedList>,
    /// Name of the store that did not answer the last refresh.
    failed: ArcSwapOption<&'static str>,
    /// Held during a refresh, so that only one of several requests queries the store.
    renewing: Mutex<()>,
}

pub struct Trending {
    store: Arc<dyn CandidateStore>,
    values: Arc<dyn ValueCache>,
    /// Slots in the order of `Window`.
    slots: [Slot; 3],
}

impl Slot {
    fn fresh(&self, ttl: Duration) -> Option<TrendingList> {
        let list = self
            .list
            .load_full()
            .filter(|list| list.0.elapsed() <= ttl)?;
        Some(TrendingList::new(&list, None))
    }
}

impl TrendingList {
    fn new((_, posts): &FetchedList, degraded: Option<&'static str>) -> Self {
        Self {
            posts: posts.clone(),
            cache_hit: true,
            degraded,
        }
    }
}

impl std::fmt::Debug for Trending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trending").finish_non_exhaustive()
    }
}

impl Trending {
    pub fn new(store: Arc<dyn CandidateStore>, values: Arc<dyn ValueCache>) -> Self {
        Self {
            store,
            values,
            slots: Default::default(),
        }
    }

    /// Returns the whole list of a window, with at most `LIMIT_MAX` posts.
    ///
    /// # Errors
    /// The store failed and there is no older list.
    pub async fn list(
        &self,
        window: Window,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<TrendingList, StoreError> {
        let slot = &self.slots[window as usize];
        if let Some(list) = slot.fresh(ttl) {
            return Ok(list);
        }
        let known = slot.list.load_full();
        let _turn = match (&known, slot.renewing.try_lock()) {
            (_, Ok(turn)) => turn,
            // Another request is refreshing the list. Until it has finished, serve the existing
            // list, marked as degraded if the last refresh failed.
            (Some(list), Err(_)) => {
                let failed = slot.failed.load().as_deref().copied();
                return Ok(TrendingList::new(list, failed));
            }
            (None, Err(_)) => slot.renewing.lock().await,
        };
        if let Some(list) = slot.fresh(ttl) {
            return Ok(list);
        }
        let found: Option<Shared<Vec<TrendingItem>>> =
            shared::get(self.values.as_ref(), "trending", &window.key()).await;
        if let Some(shared) = found
            && shared.age <= ttl
        {
            // The age counts from the moment when the list was made, even if that was before
            // this process started.
            let made_at = Instant::now().checked_sub(shared.age);
            let list = Arc::new((made_at.unwrap_or_else(Instant::now), Arc::new(shared.value)));
            slot.list.store(Some(list.clone()));
            return Ok(TrendingList::new(&list, None));
        }
        match (self.renew(window, ttl, timeout).await, known) {
            (Ok(posts), _) => Ok(TrendingList {
                posts,
                cache_hit: false,
                degraded: None,
            }),
            (Err(error), Some(list)) => {
                tracing::warn!(%error, window = window.as_str(), "could not refresh the trending list; serving the last one");
                slot.failed.store(Some(Arc::new(error.store)));
                Ok(TrendingList::new(&list, Some(error.store)))
            }
            // This process has never had a list, but another host may have one.
            (Err(error), None) => {
                let last: Option<Shared<Vec<TrendingItem>>> =
                    shared::get(self.values.as_ref(), "trending_last", &window.last_key()).await;
                let Some(last) = last else {
                    return Err(error);
                };
                tracing::warn!(%error, window = window.as_str(), "could not make a trending list; serving the last one of any host");
                let made_at = Instant::now().checked_sub(last.age.max(ttl));
                let list = Arc::new((made_at.unwrap_or_else(Instant::now), Arc::new(last.value)));
                slot.list.store(Some(list.clone()));
                slot.failed.store(Some(Arc::new(error.store)));
                Ok(TrendingList::new(&list, Some(error.store)))
            }
        }
    }

    /// Queries the store even if a list is cached, keeps the result and shares it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn renew(
        &self,
        window: Window,
        ttl: Duration,
        timeout: Duration,
    ) -> Result<Arc<Vec<TrendingItem>>, StoreError> {
        let posts = Arc::new(self.query(window, timeout).await?);
        let (values, key, last_key) = (self.values.as_ref(), window.key(), window.last_key());
        tokio::join!(
            shared::put(values, &key, posts.as_ref(), ttl),
            shared::put(values, &last_key, posts.as_ref(), LAST_LIFE),
        );
        let slot = &self.slots[window as usize];
        slot.list
            .store(Some(Arc::new((Instant::now(), posts.clone()))));
        slot.failed.store(None);
        Ok(posts)
    }

    async fn query(
        &self,
        window: Window,
        timeout: Duration,
    ) -> Result<Vec<TrendingItem>, StoreError> {
        let query = self
            .store
            .trending_window(window.hours(), unix_ms(), LIMIT_MAX);
        let posts = guard::within(timeout, query)
            .await
            .map_err(|_| StoreError {
                store: self.store.name(),
                query: "trending_window",
                retryable: true,
                source: anyhow::anyhow!("no answer within {} ms", timeout.as_millis()),
            })??;
        let item = |post: nova_model::post::TrendingPost| TrendingItem {
            post_id: post.post_id,
            author_id: post.author_id,
            engagement_count: post.counters.engagement(),
            views: post.counters.views,
            likes: post.counters.likes,
            comments: post.counters.comments,
            shares: post.counters.shares,
            window_start: rfc3339(post.window_start_ms),
        };
        Ok(posts.into_iter().map(item).collect())
    }
}
