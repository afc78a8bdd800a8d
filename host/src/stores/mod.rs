//! What Nova asks of its stores, in the words of ranking, and nothing of how they do it.
//!
//! One interface for each job that has two real implementations: the embedded set (SQLite and
//! in-process caches, `embedded/`) and a set of servers. Adapters know connections, timeouts and
//! error classes; they know no ranking. Deadlines are the caller's: every call here may be
//! dropped at an await point without harm.

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

/// A store that did not do what it was asked, and whether asking again may help.
#[derive(Debug, thiserror::Error)]
#[error("{store}: {query}: {source}")]
pub struct StoreError {
    /// The part that is named in `degraded`, e.g. `sqlite`.
    pub store: &'static str,
    /// The query's name, as in the metrics.
    pub query: &'static str,
    pub retryable: bool,
    #[source]
    pub source: anyhow::Error,
}

pub type StoreResult<T> = Result<T, StoreError>;

/// A post as a source finds it, before its features are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Post {
    pub post_id: u64,
    pub author_id: u64,
    pub created_at_ms: UnixMs,
}

/// Totals over the last 90 days, from events alone.
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
    /// `likes + 2·comments + 3·shares`, the weight by which trending is ordered.
    pub fn engagement(&self) -> u64 {
        self.likes + 2 * self.comments + 3 * self.shares
    }
}

/// The candidate sources and features of SEMANTICS (ClickHouse in the real stack).
///
/// Every source leaves out deleted posts, posts dated after `now_ms` and the viewer's own posts,
/// before any limit is applied.
#[async_trait]
pub trait CandidateStore: Send + Sync + 'static {
    /// The name used in `degraded`, `/health` and metrics.
    fn name(&self) -> &'static str;

    /// Posts at most 72 h old by authors the viewer follows; newest first, then higher post id; at most `limit` (500).
    async fn followees(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>>;

    /// Posts with engagement in the current hourly bucket and the 24 before it, by weighted
    /// engagement descending, then higher post id; at most `limit` (200).
    async fn trending(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>>;

    /// Posts at most 90 days old by authors whom the viewer liked or commented on in the last 90
    /// days; by affinity, then newest, then higher post id; at most `per_author` (20, the newest) of one author and `limit` (200) in all.
    async fn affinity(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        per_author: u32,
        limit: u32,
    ) -> StoreResult<Vec<Post>>;

    /// The newest posts of everybody, at most 90 days old, newest first, then higher post id; at most `limit`.
    async fn recent(&self, viewer: u64, now_ms: UnixMs, limit: u32) -> StoreResult<Vec<Post>>;

    /// 90-day totals (the hourly bucket that contains `now_ms − 90 d` and all later ones); a post without events may be absent.
    async fn counters(
        &self,
        post_ids: &[u64],
        now_ms: UnixMs,
    ) -> StoreResult<HashMap<u64, Counters>>;

    /// likes + comments + views of this viewer by author, last 90 days (day buckets, from the one that contains `now_ms − 90 d`).
    async fn affinities(&self, viewer: u64, now_ms: UnixMs) -> StoreResult<HashMap<u64, u64>>;

    /// Accepted impressions by author for this viewer, accepted at or after `since_ms`.
    async fn recent_impressions(
        &self,
        viewer: u64,
        since_ms: UnixMs,
    ) -> StoreResult<HashMap<u64, u64>>;

    /// Posts with engagement in the current hourly bucket and the `window_hours` before it, by
    /// weighted engagement descending, then higher post id. Counters are of that window only.
    async fn trending_window(
        &self,
        window_hours: u32,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<TrendingPost>>;

    /// One post's author (if the post is known) and 90-day totals.
    async fn post_metrics(
        &self,
        post_id: u64,
        now_ms: UnixMs,
    ) -> StoreResult<Option<(Post, Counters)>>;

    /// See SEMANTICS, "Suggested users". Best first, at most `limit`.
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

    /// Posts of followees (at most 72 h old, at most 500) and the newest posts of everybody (at most 90 days
    /// old), merged to at most `limit` posts, newest first, then higher post id. Never the viewer's own, deleted or future ones.
    /// Followees' posts are never displaced by those of others.
    async fn timeline(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<TimelinePost>>;

    /// `None` for a viewer nobody knows.
    async fn viewer_attributes(&self, viewer: u64) -> StoreResult<Option<ViewerAttributes>>;

    /// Who follows an author; at most `limit`, in no particular order.
    async fn followers(&self, author: u64, limit: u32) -> StoreResult<Vec<u64>>;

    async fn ping(&self) -> StoreResult<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelinePost {
    pub post: Post,
    /// By a followee, at most 72 h old.
    pub followed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewerAttributes {
    /// Empty when unknown.
    pub country: String,
    /// Empty when unknown.
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

/// What a viewer did.
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

/// An accepted event, as it travels from the spool to the aggregates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedEvent {
    pub event_id: uuid::Uuid,
    pub event_time_ms: UnixMs,
    /// When the host accepted it; seen posts and recent impressions are counted from here.
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

/// Where the spool drains to: the aggregates themselves when embedded, the broker in the real stack.
#[async_trait]
pub trait EventSink: Send + Sync + 'static {
    /// The name used in `/health` and metrics.
    fn name(&self) -> &'static str;

    /// Writes a batch whose last spool entry is `through`, durably. A batch, or a part of one, that was written
    /// before changes no aggregate: duplicates by idempotency key or by (user, event id) are left out here or
    /// by whoever reads on. Returns how many events were written.
    async fn write(&self, events: &[AcceptedEvent], through: i64) -> StoreResult<u64>;

    /// The spool entry up to which everything was written; 0 for a sink that does not remember.
    async fn written_through(&self) -> StoreResult<i64>;

    async fn ping(&self) -> StoreResult<()>;
}

/// The record that a ranking was served. One for each ranking, whatever number of pages.
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
    /// Empty when nothing was missing.
    pub degraded: Vec<String>,
}

#[async_trait]
pub trait ExposureStore: Send + Sync + 'static {
    /// Writing the same `ranking_id` again changes nothing.
    async fn record(&self, exposures: &[Exposure]) -> StoreResult<()>;

    /// Per variation of one experiment: exposures and distinct viewers.
    async fn variation_counts(&self, experiment: &str) -> StoreResult<Vec<VariationCount>>;

    /// The viewers with the most rankings served since `since_ms`, most first, then lower id.
    async fn active_viewers(&self, since_ms: UnixMs, limit: u32) -> StoreResult<Vec<u64>>;

    /// One UTC day, see SEMANTICS, "Daily metrics".
    async fn daily_metrics(&self, day_start_ms: UnixMs) -> StoreResult<DailyCounts>;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct VariationCount {
    pub variation: String,
    pub exposures: u64,
    pub viewers: u64,
}

/// The raw material of the daily metrics, overall (`policy` is `None`) and per effective digest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DailyCounts {
    pub overall: DigestCounts,
    /// By effective digest; an event belongs to the ranking it names in `ranking_id`.
    pub by_digest: Vec<(String, DigestCounts)>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct DigestCounts {
    pub impressions: u64,
    pub views: u64,
    /// The same over posts whose `reason` in the viewer's ranking was not `followees`.
    pub recommended_impressions: u64,
    pub recommended_views: u64,
    pub dwell_p50_ms: Option<f64>,
    pub dwell_p95_ms: Option<f64>,
    pub posts_served: u64,
    /// Posts that stood twice in one ranking.
    pub posts_repeated: u64,
    pub rankings: u64,
    pub rankings_whole: u64,
}

/// The shared cache of feeds (Redis in the real stack). A failure here is a miss, never an error
/// for the viewer.
///
/// Each viewer has an **epoch**, which [`FeedCache::overtake`] ends. What was begun in an epoch that
/// is over is not cached any more: a ranking that was fetched while its viewer liked something would
/// otherwise hide the like for as long as it lives.
#[async_trait]
pub trait FeedCache: Send + Sync + 'static {
    /// The name used in `degraded`, `/health` and metrics.
    fn name(&self) -> &'static str;

    /// A snapshot by its ranking, for as long as it lives: 10 min from its last use.
    async fn snapshot(&self, ranking_id: uuid::Uuid) -> StoreResult<Option<Arc<Snapshot>>>;

    /// The newest snapshot of a viewer made by one effective digest in the viewer's present epoch.
    async fn latest_snapshot(
        &self,
        viewer: u64,
        effective_digest: Digest,
    ) -> StoreResult<Option<Arc<Snapshot>>>;

    /// The newest snapshot of a viewer that is no timeline, whatever made it.
    async fn newest_snapshot(&self, viewer: u64) -> StoreResult<Option<Arc<Snapshot>>>;

    /// Keeps a snapshot for its cursors. It becomes `latest` if `epoch` is still the viewer's; with `None` it never does.
    async fn put_snapshot(&self, snapshot: Arc<Snapshot>, epoch: Option<u64>) -> StoreResult<()>;

    /// The viewer's cached candidates, and the epoch in which they were looked for.
    async fn candidates(&self, viewer: u64) -> StoreResult<CandidatesLookup>;

    /// Does nothing when `epoch` is over. Nobody asks for them when they are older than `ttl`.
    async fn put_candidates(
        &self,
        viewer: u64,
        epoch: u64,
        candidates: Arc<CachedCandidates>,
        ttl: Duration,
    ) -> StoreResult<()>;

    async fn epoch(&self, viewer: u64) -> StoreResult<u64>;

    /// After the viewer's own like, comment or share, and after a post of somebody they follow: ends the epoch,
    /// drops the candidates, and no snapshot is `latest` any more. The snapshots themselves stay for their cursors.
    async fn overtake(&self, viewer: u64) -> StoreResult<()>;

    async fn ping(&self) -> StoreResult<()>;
}

#[derive(Debug, Clone)]
pub struct CandidatesLookup {
    pub epoch: u64,
    pub candidates: Option<Arc<CachedCandidates>>,
}

/// Small values that hosts share, by key and for a time (Redis in the real stack): trending lists, suggestions,
/// daily metrics. A failure is a miss.
#[async_trait]
pub trait ValueCache: Send + Sync + 'static {
    async fn get(&self, key: &str) -> StoreResult<Option<Vec<u8>>>;

    async fn put(&self, key: &str, value: Vec<u8>, ttl: Duration) -> StoreResult<()>;

    async fn remove(&self, key: &str) -> StoreResult<()>;
}

/// Which of many hosts does the periodic work (Redis in the real stack; a host that is alone always does it).
#[async_trait]
pub trait Lease: Send + Sync + 'static {
    /// Takes the lease on `job` for `ttl`, or renews it; `false` while another host has it.
    async fn hold(&self, job: &str, ttl: Duration) -> StoreResult<bool>;

    /// Lets another host have it before its time is over. Nothing happens to another host's lease.
    async fn release(&self, job: &str) -> StoreResult<()>;
}

/// Which posts a viewer has seen in the last 24 h. A filter may take a post for seen that was not, for fewer than 1 % of posts.
#[async_trait]
pub trait SeenPosts: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Changes whenever a post joins.
    async fn version(&self, viewer: u64) -> StoreResult<u64>;

    /// Which of `posts` were seen, and the version that says so.
    async fn among(&self, viewer: u64, posts: &[u64], now_ms: UnixMs) -> StoreResult<SeenAmong>;

    /// Marks posts as seen from `accepted_ms` on, before the answer that accepted them leaves.
    async fn mark(&self, viewer: u64, posts: &[u64], accepted_ms: UnixMs) -> StoreResult<()>;

    /// How many posts; an estimate where the filter cannot count.
    async fn count(&self, viewer: u64, now_ms: UnixMs) -> StoreResult<u64>;
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenAmong {
    /// 0 where the filter could not be read.
    pub version: u64,
    /// One for each post asked about.
    pub seen: Vec<bool>,
}
