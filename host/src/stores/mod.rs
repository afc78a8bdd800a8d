//! The store interfaces: the traits and plain types through which ranking reads and writes data.
//! They use ranking terms and say nothing about how a store works.
//!
//! There is one trait for each responsibility that has two real implementations: the embedded
//! set (SQLite and in-process caches, `embedded/`) and a set of servers. Adapters know
//! connections, timeouts and error classes; they know no ranking. The caller sets the deadline:
//! every call here may be dropped at an await point without harm.

pub mod breaker;
pub mod clickhouse;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
pub mod conformance;
pub mod embedded;
pub mod guard;
pub mod kafka;
pub mod postgres;
pub mod redis;
pub mod shared;

use crate::feed::snapshot::{CachedCandidates, Snapshot};
use crate::policy::Digest;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Milliseconds since the Unix epoch, UTC.
pub type UnixMs = u64;

pub const HOUR_MS: u64 = 3_600_000;
pub const DAY_MS: u64 = 24 * HOUR_MS;

/// A failed call to a store. It says if a retry may help.
#[derive(Debug, thiserror::Error)]
#[error("{store}: {query}: {source}")]
pub struct StoreError {
    /// The part that is named in `degraded`, e.g. `sqlite`.
    pub store: &'static str,
    /// The name of the query, as in the metrics.
    pub query: &'static str,
    pub retryable: bool,
    #[source]
    pub source: anyhow::Error,
}

pub type StoreResult<T> = Result<T, StoreError>;

/// A post as a candidate source returns it, before its features are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Post {
    pub post_id: u64,
    pub author_id: u64,
    pub created_at_ms: UnixMs,
}

/// Totals over the last 90 days, counted from events alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub views: u64,
    pub likes: u64,
    pub comments: u64,
    pub shares: u64,
    pub dwell_ms_sum: u64,
    pub exposures: u64,
}

impl Counters {
    /// `likes + 2·comments + 3·shares`, the weight by which trending posts are ordered.
    pub fn engagement(&self) -> u64 {
        self.likes + 2 * self.comments + 3 * self.shares
    }
}

/// The candidate sources and features that docs/semantics.md defines (ClickHouse in the real
/// stack).
///
/// Every source leaves out deleted posts, posts dated after `now_ms` and the viewer's own posts,
/// before any limit is applied.
#[async_trait]
pub trait CandidateStore: Send + Sync + 'static {
    /// The name used in `degraded`, `/health` and metrics.
    fn name(&self) -> &'static str;

    /// Posts at most 72 h old by authors the viewer follows; newest first, then higher post id;
    /// at most `limit` (500).
    async fn followees(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>>;

    /// Posts with engagement in the current hourly bucket and the 24 before it, by weighted
    /// engagement descending, then higher post id; at most `limit` (200).
    async fn trending(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>>;

    /// Posts at most 90 days old by authors whose posts the viewer liked or commented on
    /// in the last 90 days. They are ordered by affinity, then newest, then higher post
    /// id. At most `per_author` (20, the newest) are by one author, and at most `limit`
    /// (200) are returned in all.
    async fn affinity(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        per_author: u32,
        limit: u32,
    ) -> StoreResult<Vec<Post>>;

    /// The newest posts of all authors, at most 90 days old, newest first, then higher post
    /// id; at most `limit`.
    async fn recent(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>>;

    /// Totals over 90 days (the hourly bucket that contains `now_ms − 90 d` and all later ones).
    /// A post without events may be absent.
    async fn counters(
        &self,
        post_ids: &[u64],
        now_ms: UnixMs,
    ) -> StoreResult<HashMap<u64, Counters>>;

    /// Number of likes, comments and views of this viewer, by author, over the last 90 days (day
    /// buckets, from the one that contains `now_ms − 90 d`).
    async fn affinities(&self, viewer: u64, now_ms: UnixMs) -> StoreResult<HashMap<u64, u64>>;

    /// Number of impressions of this viewer, by author, that were accepted at or after `since_ms`.
    async fn recent_impressions(
        &self,
        viewer: u64,
        since_ms: UnixMs,
    ) -> StoreResult<HashMap<u64, u64>>;

    /// Posts with engagement in the current hourly bucket and the `window_hours` before it, by
    /// weighted engagement descending, then higher post id. Counters cover that window only.
    async fn trending_window(
        &self,
        window_hours: u32,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<TrendingPost>>;

    /// The author of a post (if the post is known) and its 90-day totals.
    async fn post_metrics(
        &self,
        post_id: u64,
        now_ms: UnixMs,
    ) -> StoreResult<Option<(Post, Counters)>>;

    /// See docs/semantics.md, "Suggested users". Best first, at most `limit`.
    async fn suggested_users(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<SuggestedUser>>;

    async fn ping(&self) -> StoreResult<()>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrendingPost {
    pub post_id: u64,
    pub author_id: u64,
    pub window_start_ms: UnixMs,
    /// Sums over the window.
    pub counters: Counters,
}

/// Users, follows and posts (PostgreSQL in the real stack).
#[async_trait]
pub trait RelationalStore: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Posts of followees (at most 72 h old, at most 500) and the newest posts of all authors
    /// (at most 90 days old), merged to at most `limit` posts, newest first, then higher post
    /// id. The viewer's own posts, deleted posts and future posts are left out. Posts of other
    /// authors never displace posts of followees.
    async fn timeline(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<TimelinePost>>;

    /// `None` if the viewer is unknown.
    async fn viewer_attributes(&self, viewer: u64) -> StoreResult<Option<ViewerAttributes>>;

    /// The followers of an author; at most `limit`, in no particular order.
    async fn followers(&self, author: u64, limit: u32) -> StoreResult<Vec<u64>>;

    async fn ping(&self) -> StoreResult<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelinePost {
    pub post: Post,
    /// True if the author is a followee and the post is at most 72 h old.
    pub followed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewerAttributes {
    /// Empty if unknown.
    pub country: String,
    /// Empty if unknown.
    pub language: String,
    pub created_at_ms: UnixMs,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SuggestedUser {
    pub user_id: u64,
    pub username: String,
    pub avatar_url: String,
    pub bio: String,
    pub follower_count: u64,
    /// `log1p(shared) + log1p(interactions)`.
    pub affinity_score: f64,
}

/// The kind of a viewer's action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Impression,
    View,
    Like,
    Comment,
    Share,
    Dwell,
}

impl Action {
    pub const ALL: [Action; 6] = [
        Action::Impression,
        Action::View,
        Action::Like,
        Action::Comment,
        Action::Share,
        Action::Dwell,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Action::Impression => "impression",
            Action::View => "view",
            Action::Like => "like",
            Action::Comment => "comment",
            Action::Share => "share",
            Action::Dwell => "dwell",
        }
    }

    pub fn parse(text: &str) -> Option<Action> {
        Action::ALL
            .into_iter()
            .find(|action| action.as_str() == text)
    }
}

/// An accepted event, in the form in which it travels from the spool to the aggregates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedEvent {
    pub event_id: uuid::Uuid,
    pub event_time_ms: UnixMs,
    /// Time at which the host accepted the event; seen posts and recent impressions are
    /// counted from this time.
    pub accepted_ms: UnixMs,
    pub user_id: u64,
    pub post_id: u64,
    pub author_id: u64,
    pub action: Action,
    pub dwell_ms: Option<u32>,
    pub device: String,
    pub app_ver: String,
    pub ranking_id: Option<uuid::Uuid>,
}

/// The destination of the spool: the aggregates themselves when embedded, the broker in the real
/// stack.
#[async_trait]
pub trait EventSink: Send + Sync + 'static {
    /// The name used in `/health` and metrics.
    fn name(&self) -> &'static str;

    /// Writes a batch durably; its last spool entry is `through`. Returns the number of events
    /// written. If a batch, or a part of one, was written before, it changes no aggregate: the sink
    /// or the consumer behind it leaves out duplicates by idempotency key or by (user, event id).
    async fn write(&self, events: &[AcceptedEvent], through: i64) -> StoreResult<u64>;

    /// The last spool entry up to which everything was written; 0 if the sink does not remember it.
    async fn written_through(&self) -> StoreResult<i64>;

    async fn ping(&self) -> StoreResult<()>;
}

/// The record that a ranking was served. There is one for each ranking, regardless of the
/// number of pages served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exposure {
    pub ranking_id: uuid::Uuid,
    pub request_id: String,
    pub user_id: u64,
    pub served_at_ms: UnixMs,
    pub served_by: String,
    /// `name@version`, or `native`.
    pub policy: String,
    pub effective_digest: String,
    pub experiment: Option<String>,
    pub variation: Option<String>,
    /// (post id, reason) in the order shown.
    pub posts: Vec<(u64, Cow<'static, str>)>,
    /// Empty if no part was missing.
    pub degraded: Vec<String>,
}

#[async_trait]
pub trait ExposureStore: Send + Sync + 'static {
    /// Records exposures. Writing the same `ranking_id` again changes nothing.
    async fn record(&self, exposures: &[Exposure]) -> StoreResult<()>;

    /// Exposures and distinct viewers of each variation of one experiment.
    async fn variation_counts(&self, experiment: &str) -> StoreResult<Vec<VariationCount>>;

    /// The viewers with the most rankings served since `since_ms`, most first, then lower id.
    async fn active_viewers(&self, since_ms: UnixMs, limit: u32) -> StoreResult<Vec<u64>>;

    /// Metrics of one UTC day. See docs/semantics.md, "Daily metrics".
    async fn daily_metrics(&self, day_start_ms: UnixMs) -> StoreResult<DailyCounts>;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct VariationCount {
    pub variation: String,
    pub exposures: u64,
    pub viewers: u64,
}

/// The raw counts behind the daily metrics, overall and per effective digest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DailyCounts {
    pub overall: DigestCounts,
    /// Counts by effective digest; an event belongs to the ranking that its `ranking_id` names.
    pub by_digest: Vec<(String, DigestCounts)>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct DigestCounts {
    pub impressions: u64,
    pub views: u64,
    /// Impressions of posts whose `reason` in the viewer's ranking was not `followees`.
    /// `recommended_views` counts views in the same way.
    pub recommended_impressions: u64,
    pub recommended_views: u64,
    pub dwell_p50_ms: Option<f64>,
    pub dwell_p95_ms: Option<f64>,
    pub posts_served: u64,
    /// Posts that appeared twice in one ranking.
    pub posts_repeated: u64,
    pub rankings: u64,
    pub rankings_whole: u64,
}

/// The shared cache of feeds (Redis in the real stack). A failure here is a cache miss, never an
/// error for the viewer.
///
/// Each viewer has an **epoch**, which [`FeedCache::overtake`] ends. A result whose computation
/// began in an epoch that has ended is not cached: a ranking that was being computed while its
/// viewer liked a post would otherwise hide that like for the whole lifetime of the cache entry.
#[async_trait]
pub trait FeedCache: Send + Sync + 'static {
    /// The name used in `degraded`, `/health` and metrics.
    fn name(&self) -> &'static str;

    /// Returns the snapshot of a ranking, within its lifetime of 10 min after its last use.
    async fn snapshot(&self, ranking_id: uuid::Uuid) -> StoreResult<Option<Arc<Snapshot>>>;

    /// The newest snapshot of a viewer that was made with one effective digest in the
    /// viewer's current epoch.
    async fn latest_snapshot(
        &self,
        viewer: u64,
        effective_digest: Digest,
    ) -> StoreResult<Option<Arc<Snapshot>>>;

    /// The newest snapshot of a viewer that is not a timeline, made with any effective digest.
    async fn newest_snapshot(&self, viewer: u64) -> StoreResult<Option<Arc<Snapshot>>>;

    /// Stores a snapshot so that its cursors work. It becomes `latest` if `epoch` is still the
    /// viewer's current one; with `None` it never does.
    async fn put_snapshot(&self, snapshot: Arc<Snapshot>, epoch: Option<u64>) -> StoreResult<()>;

    /// The viewer's cached candidates, and the epoch in which the lookup was made.
    async fn candidates(&self, viewer: u64) -> StoreResult<CandidatesLookup>;

    /// Caches candidates; does nothing if `epoch` has ended. Candidates older than `ttl`
    /// are never asked for.
    async fn put_candidates(
        &self,
        viewer: u64,
        epoch: u64,
        candidates: Arc<CachedCandidates>,
        ttl: Duration,
    ) -> StoreResult<()>;

    async fn epoch(&self, viewer: u64) -> StoreResult<u64>;

    /// Ends the viewer's epoch, drops the cached candidates and marks no snapshot as `latest`
    /// any more. Called after the viewer's own like, comment or share, and after a new post by
    /// an author they follow. The snapshots themselves stay, so that their cursors work.
    async fn overtake(&self, viewer: u64) -> StoreResult<()>;

    async fn ping(&self) -> StoreResult<()>;
}

#[derive(Debug, Clone)]
pub struct CandidatesLookup {
    pub epoch: u64,
    pub candidates: Option<Arc<CachedCandidates>>,
}

/// Small values that hosts share by key, each with a TTL (Redis in the real stack): trending
/// lists, suggestions, daily metrics. A failure is a cache miss.
#[async_trait]
pub trait ValueCache: Send + Sync + 'static {
    async fn get(&self, key: &str) -> StoreResult<Option<Vec<u8>>>;

    async fn put(&self, key: &str, value: Vec<u8>, ttl: Duration) -> StoreResult<()>;

    async fn remove(&self, key: &str) -> StoreResult<()>;
}

/// Decides which of several hosts does the periodic work (Redis in the real stack; a single
/// host always does it).
#[async_trait]
pub trait Lease: Send + Sync + 'static {
    /// Takes the lease on `job` for `ttl`, or renews it. Returns `false` while another host holds
    /// it.
    async fn hold(&self, job: &str, ttl: Duration) -> StoreResult<bool>;

    /// Gives the lease up before it expires, so that another host can take it. A lease of
    /// another host is left alone.
    async fn release(&self, job: &str) -> StoreResult<()>;
}

/// The posts that each viewer has seen in the last 24 h. A filter may report an unseen post as
/// seen, for fewer than 1 % of posts.
#[async_trait]
pub trait SeenPosts: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// A version that changes whenever a post is added.
    async fn version(&self, viewer: u64) -> StoreResult<u64>;

    /// Reports which of `posts` were seen, and the version of the set at that moment.
    async fn among(&self, viewer: u64, posts: &[u64], now_ms: UnixMs) -> StoreResult<SeenAmong>;

    /// Marks posts as seen from `accepted_ms` on, before the response that accepted them is sent.
    async fn mark(&self, viewer: u64, posts: &[u64], accepted_ms: UnixMs) -> StoreResult<()>;

    /// Number of seen posts; an estimate if the filter cannot count exactly.
    async fn count(&self, viewer: u64, now_ms: UnixMs) -> StoreResult<u64>;
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenAmong {
    /// 0 if the filter could not be read.
    pub version: u64,
    /// One entry for each post asked about, in the same order.
    pub seen: Vec<bool>,
}
