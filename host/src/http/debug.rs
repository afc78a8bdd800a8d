//! Debug routes: one viewer's cache, one post's counters, and the state of the host.

use super::admin_audit::{LocalChangeEntry, SetAsideEntry};
use super::auth::{Admin, Operate, Read};
use super::extract::Id;
use crate::app::App;
use crate::http::problem::Problem;
use crate::jobs::profile::ProfileReport;
use axum::Json;
use axum::extract::State;
use nova_model::snapshot::{Algo, ServedBy};
use nova_model::time::rfc3339;
use nova_stores::breaker::circuits;
use nova_support::clock::unix_ms;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct FeedCacheAnswer {
    pub user_id: u64,
    pub candidates: Option<CandidatesInfo>,
    pub newest_snapshot: Option<SnapshotInfo>,
    pub seen_posts: u64,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CandidatesInfo {
    pub count: usize,
    pub age_s: f64,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SnapshotInfo {
    pub ranking_id: uuid::Uuid,
    pub algo: Algo,
    pub served_by: ServedBy,
    pub policy: String,
    pub effective_digest: String,
    pub created_at: String,
    pub age_s: f64,
    pub degraded: Vec<String>,
    pub post_ids: Vec<u64>,
}

/// Returns the cached candidates and the newest snapshot of a viewer.
#[utoipa::path(get, path = "/debug/user/{id}/feed/cache", tag = "admin", security(("admin" = [])), params(("id" = u64, Path)),
    responses((status = 200, body = FeedCacheAnswer), (status = 400, body = Problem), (status = 403, body = Problem)))]
pub async fn feed_cache(
    State(app): State<Arc<App>>,
    _admin: Admin<Operate>,
    Id(id): Id,
) -> Result<Json<FeedCacheAnswer>, Problem> {
    let cache = &app.stores.cache;
    let candidates = cache.candidates(id).await?.candidates;
    let snapshot = cache.newest_snapshot(id).await?;
    Ok(Json(FeedCacheAnswer {
        user_id: id,
        candidates: candidates.map(|cached| CandidatesInfo {
            count: cached.set.len(),
            age_s: cached.fetched.elapsed().as_secs_f64(),
        }),
        newest_snapshot: snapshot.map(|snapshot| SnapshotInfo {
            ranking_id: snapshot.ranking_id,
            algo: snapshot.algo,
            served_by: snapshot.served_by,
            policy: snapshot.policy.label(),
            effective_digest: snapshot.policy.effective_digest.to_string(),
            created_at: rfc3339(snapshot.created_at_ms),
            age_s: snapshot.created.elapsed().as_secs_f64(),
            degraded: snapshot.degraded.clone(),
            post_ids: snapshot.posts.iter().map(|post| post.post_id).collect(),
        }),
        seen_posts: app.stores.seen.count(id, unix_ms()).await?,
    }))
}

/// Totals of a post over the last 90 days.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PostMetrics {
    pub post_id: u64,
    pub author_id: u64,
    pub likes: u64,
    pub comments: u64,
    pub shares: u64,
    pub views: u64,
    pub exposures: u64,
    pub dwell_ms_sum: u64,
}

/// Returns the counters of a post that ranking uses.
#[utoipa::path(get, path = "/debug/post/{id}/metrics", tag = "admin", security(("admin" = [])), params(("id" = u64, Path)),
    responses((status = 200, body = PostMetrics), (status = 400, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn post_metrics(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    Id(id): Id,
) -> Result<Json<PostMetrics>, Problem> {
    let found = app.stores.candidates.post_metrics(id, unix_ms()).await?;
    let (post, counters) =
        found.ok_or_else(|| Problem::not_found(format!("there is no post {id}")))?;
    Ok(Json(PostMetrics {
        post_id: post.post_id,
        author_id: post.author_id,
        likes: counters.likes,
        comments: counters.comments,
        shares: counters.shares,
        views: counters.views,
        exposures: counters.exposures,
        dwell_ms_sum: counters.dwell_ms_sum,
    }))
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SystemState {
    pub version: &'static str,
    pub uptime_s: f64,
    /// `embedded` or `stack`.
    pub stores: &'static str,
    pub profile: ProfileReport,
    /// State of each circuit breaker: `closed`, `half_open` or `open`. The keys are the labels
    /// of the metric `circuit_state`. Empty if the host runs embedded.
    pub circuits: BTreeMap<String, &'static str>,
    pub registry_revision: i64,
    /// Changes that this host made while the registry was unavailable and that the registry does
    /// not have yet.
    pub local_changes: Vec<LocalChangeEntry>,
    /// The newest changes of this host that the registry refused for good. They are not in force.
    pub set_aside_changes: Vec<SetAsideEntry>,
    pub active: String,
    pub warm: Vec<String>,
    pub running_experiments: Vec<String>,
    pub flags: BTreeMap<&'static str, bool>,
    pub spool_events: i64,
    pub spool_bytes: i64,
    /// Reasons for refusing policies of the watched directory, by subdirectory.
    pub refused_policies: BTreeMap<String, Vec<String>>,
}

/// Returns the state of this host.
#[utoipa::path(get, path = "/debug/system/state", tag = "admin", security(("admin" = [])),
    responses((status = 200, body = SystemState), (status = 403, body = Problem)))]
pub async fn system_state(
    State(app): State<Arc<App>>,
    _admin: Admin<Operate>,
) -> Json<SystemState> {
    let serving = app.deploy.serving().clone();
    let flags = app.flags();
    Json(SystemState {
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: app.uptime().as_secs_f64(),
        stores: match app.config.stores.stack() {
            None => "embedded",
            Some(_) => "stack",
        },
        profile: app.profile.report(),
        circuits: circuits()
            .into_iter()
            .map(|(name, circuit)| (name, circuit.as_str()))
            .collect(),
        registry_revision: serving.state.revision,
        local_changes: LocalChangeEntry::all(&app.deploy),
        set_aside_changes: SetAsideEntry::all(&app.deploy),
        active: serving.active.spec.policy.to_string(),
        warm: serving
            .warm
            .iter()
            .map(|policy| policy.spec.policy.to_string())
            .collect(),
        running_experiments: serving
            .experiments
            .iter()
            .map(|experiment| experiment.key.to_string())
            .collect(),
        flags: crate::config::Flags::NAMES
            .iter()
            .filter_map(|name| Some((*name, flags.get(name)?)))
            .collect(),
        spool_events: app.spool.pending(),
        spool_bytes: app.spool.pending_bytes(),
        refused_policies: app.watch_report.refused(),
    })
}
