//! The explain route: the reasons for each post's position, under one policy or under two for
//! comparison.

use super::auth::{Admin, Read};
use super::extract::{Id, Query};
use crate::app::App;
use crate::feed::candidates::fetch;
use crate::feed::fallback_chain::RankingTask;
use crate::http::problem::Problem;
use axum::Json;
use axum::extract::State;
use nova_model::artifact::{PolicyRef, Stage};
use nova_model::time::rfc3339;
use nova_policy::compiler::lower_priority;
use nova_policy::explain::{ExplainedPost, explain as explain_ranking};
use nova_policy::loaded::LoadedPolicy;
use nova_policy_sdk::Request;
use nova_support::clock::unix_ms;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

/// Allows one explanation at a time. Explanations run outside the hot path, but they need a
/// bound.
static EXPLAINING: Semaphore = Semaphore::const_new(1);
const EXPLAIN_BUDGET: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ExplainAnswer {
    pub user_id: u64,
    /// Time for which the ranking was computed.
    pub now: String,
    pub degraded: Vec<String>,
    #[serde(flatten)]
    pub explained: ExplainedRanking,
    /// The same candidates at the same time under the other policy. Null if no comparison was
    /// requested.
    pub compare: Option<ExplainedRanking>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ExplainedRanking {
    pub policy: String,
    pub digest: String,
    pub parameters: BTreeMap<String, BTreeMap<String, f64>>,
    /// Posts in display order. Posts that dedup removed come last.
    pub posts: Vec<ExplainedPost>,
}

/// Explains a viewer's current ranking under one or two policies, by post and stage. Caches
/// nothing and records nothing.
#[utoipa::path(get, path = "/debug/user/{id}/feed/explain", tag = "admin", security(("admin" = [])),
    params(("id" = u64, Path), ("policy" = Option<String>, Query, description = "`name@version`; default: the active policy"),
        ("compare" = Option<String>, Query, description = "`name@version` of a second policy to compare with")),
    responses((status = 200, body = ExplainAnswer), (status = 400, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn explain(
    State(app): State<Arc<App>>,
    _admin: Admin<Read>,
    Id(id): Id,
    query: Query,
) -> Result<Json<ExplainAnswer>, Problem> {
    // One at a time, because an explanation may load and compile its policies and takes longer
    // than a ranking does. A request that waits here holds no resources yet.
    let turn = EXPLAINING
        .acquire()
        .await
        .map_err(|closed| Problem::internal(&closed))?;
    let turn = Arc::new(turn);
    let policy = named(&app, &query, "policy").await?;
    let policy = policy.unwrap_or_else(|| app.deploy.serving().active.clone());
    let other = named(&app, &query, "compare").await?;
    let now_ms = unix_ms();
    let timeout = Duration::from_millis(app.live().feed.source_timeout_ms);
    let fetched = fetch(app.stores.candidates.as_ref(), id, now_ms, timeout).await;
    if fetched.failed {
        return Err(Problem::unavailable(
            "no candidate source answers; try again later",
        ));
    }
    let posts = &fetched.set.post_ids;
    let task = RankingTask {
        seen: app.stores.seen.among(id, posts, now_ms).await?.seen,
        request: Request {
            user_id: id,
            now_ms,
            seed: 0,
            limit: 50,
        },
        set: Arc::new(fetched.set),
    };
    let explained = explained(turn.clone(), policy, task.clone()).await?;
    let compare = match other {
        None => None,
        Some(other) => Some(self::explained(turn, other, task).await?),
    };
    Ok(Json(ExplainAnswer {
        user_id: id,
        now: rfc3339(now_ms),
        degraded: fetched.degraded.names(),
        explained,
        compare,
    }))
}

/// Returns the published policy that a query parameter names.
async fn named(
    app: &App,
    query: &Query,
    field: &'static str,
) -> Result<Option<Arc<LoadedPolicy>>, Problem> {
    let Some(text) = query.get(field) else {
        return Ok(None);
    };
    let policy: PolicyRef = text
        .parse()
        .map_err(|error: String| Problem::invalid_field(field, error))?;
    let serving = app.deploy.serving().clone();
    Ok(Some(app.deploy.load(&serving.state, &policy, None).await?))
}

/// Explains on a thread of its own with a lower priority, so that no viewer waits for it. The
/// thread keeps the turn, even if the caller gives up.
async fn explained(
    turn: Arc<SemaphorePermit<'static>>,
    policy: Arc<LoadedPolicy>,
    task: RankingTask,
) -> Result<ExplainedRanking, Problem> {
    let running = policy.clone();
    let (done, answer) = oneshot::channel();
    let run = move || {
        lower_priority();
        let budget = running.budget_without_deadline(EXPLAIN_BUDGET);
        let explained = explain_ranking(&running, budget, task.input());
        drop(turn);
        let _ = done.send(explained);
    };
    std::thread::Builder::new()
        .name("explain".into())
        .spawn(run)
        .map_err(|error| Problem::internal(&error))?;
    let run = answer.await.map_err(|gone| Problem::internal(&gone))?;
    let label = policy.spec.policy.to_string();
    let posts =
        run.map_err(|failure| Problem::unavailable(format!("{label} failed: {failure}")))?;
    let stages = &policy.spec.stages;
    let parameters = |stage: &Stage| (stage.as_str().to_owned(), stages.get(*stage).params.clone());
    Ok(ExplainedRanking {
        policy: label,
        digest: policy.effective_digest.to_string(),
        parameters: Stage::ALL.iter().map(parameters).collect(),
        posts,
    })
}
