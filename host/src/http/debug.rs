//! Looking inside: one viewer's cache and ranking, one post's counters, the host's state.

use super::admin_audit::LocalChangeEntry;
use super::auth::{Admin, Operate, Read};
use super::extract::{Id, Query};
use crate::app::App;
use crate::clock::{rfc3339, unix_ms};
use crate::error::Problem;
use crate::feed::candidates::fetch;
use crate::feed::snapshot::{Algo, ServedBy};
use crate::jobs::profile::ProfileReport;
use crate::policy::PolicyRef;
use crate::policy::explain::{ExplainedPost, explain as explain_ranking};
use crate::policy::ranking::RankInput;
use axum::Json;
use axum::extract::State;
use nova_policy_sdk::Request;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Off the hot path there is time, but not without bound.
static EXPLAINING: Semaphore = Semaphore::const_new(1);
const EXPLAIN_BUDGET: Duration = Duration::from_secs(2);

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

/// What is cached for a viewer.
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

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ExplainAnswer {
    pub user_id: u64,
    pub policy: String,
    pub digest: String,
    /// The moment it was ranked for.
    pub now: String,
    pub parameters: BTreeMap<String, BTreeMap<String, f64>>,
    pub degraded: Vec<&'static str>,
    /// In the order shown; posts that dedup removed last.
    pub posts: Vec<ExplainedPost>,
}

/// How a policy ranks for a viewer right now, post by post. Nothing is cached, nothing is recorded.
#[utoipa::path(get, path = "/debug/user/{id}/feed/explain", tag = "admin", security(("admin" = [])),
    params(("id" = u64, Path), ("policy" = Option<String>, Query, description = "`name@version`; default: the active one")),
    responses((status = 200, body = ExplainAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn explain(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    Id(id): Id,
    query: Query,
) -> Result<Json<ExplainAnswer>, Problem> {
    let serving = app.deploy.serving().clone();
    let policy = match query.get("policy") {
        None => serving.active.clone(),
        Some(text) => {
            let policy: PolicyRef = text
                .parse()
                .map_err(|error: String| Problem::invalid_field("policy", error))?;
            app.deploy.load(&serving.state, &policy, None).await?
        }
    };
    let now_ms = unix_ms();
    let timeout = Duration::from_millis(app.live().feed.source_timeout_ms);
    let fetched = fetch(app.stores.candidates.as_ref(), id, now_ms, timeout).await;
    if fetched.failed {
        return Err(Problem::unavailable("no candidate source answers"));
    }
    let posts = &fetched.set.post_ids;
    let seen = app.stores.seen.among(id, posts, now_ms).await?.seen;
    let request = Request {
        user_id: id,
        now_ms,
        seed: 0,
        limit: 50,
    };
    // One at a time: explaining takes a worker from the feeds, for longer than a ranking does.
    let _turn = EXPLAINING
        .acquire()
        .await
        .map_err(|closed| Problem::internal(&closed))?;
    let running = policy.clone();
    let explained = app.policy_pool.run(EXPLAIN_BUDGET, move || {
        let budget = running.budget_without_deadline(EXPLAIN_BUDGET);
        explain_ranking(
            &running,
            budget,
            RankInput {
                request: &request,
                set: &fetched.set,
                seen: &seen,
            },
        )
    });
    let explained = explained
        .await
        .map_err(|busy| Problem::unavailable(busy.to_string()))?;
    let posts = explained
        .map_err(|failure| Problem::unavailable(format!("the policy failed: {failure}")))?;
    let stages = &policy.spec.stages;
    Ok(Json(ExplainAnswer {
        user_id: id,
        policy: policy.spec.policy.to_string(),
        digest: policy.effective_digest.to_string(),
        now: rfc3339(now_ms),
        parameters: crate::policy::Stage::ALL
            .iter()
            .map(|stage| (stage.as_str().to_owned(), stages.get(*stage).params.clone()))
            .collect(),
        degraded: fetched.degraded,
        posts,
    }))
}

/// A post's totals over the last 90 days.
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

/// A post's counters, as ranking sees them.
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
    pub registry_revision: i64,
    /// What this host changed alone and the registry does not know yet.
    pub local_changes: Vec<LocalChangeEntry>,
    pub active: String,
    pub warm: Vec<String>,
    pub running_experiments: Vec<String>,
    pub flags: BTreeMap<&'static str, bool>,
    pub spool_events: i64,
    pub spool_bytes: i64,
    /// What the watched directory offers and why it was refused, by directory.
    pub refused_policies: BTreeMap<String, Vec<String>>,
}

/// The state of this host.
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
        registry_revision: serving.state.revision,
        local_changes: LocalChangeEntry::all(&app.deploy),
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
