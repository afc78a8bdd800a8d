//! `GET /api/v1/feed`: parses the request, serves a page and renders the response around the posts,
//! whose JSON `feed/page.rs` makes.

use super::auth::Viewer;
use super::extract::Query;
use crate::app::App;
use crate::feed::Feed;
use crate::feed::page::{FeedPage, FeedPost};
use crate::feed::request::FeedRequest;
use crate::feed::story::serve;
use crate::http::problem::Problem;
use crate::request_id::request_id;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use nova_model::snapshot::{Algo, ServedBy};
use nova_support::metrics::METRICS;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 100;

/// A page of a feed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct FeedResponse<'a> {
    /// Rendered separately. The field exists only for the API description.
    #[serde(skip)]
    #[schema(required = true)]
    pub posts: Vec<FeedPost>,
    /// Cursor of the next page. Null on the last page.
    #[schema(required = true)]
    pub cursor: Option<&'a str>,
    /// Number of posts in the whole ranking.
    pub total_count: usize,
    pub cache_hit: bool,
    pub response_time_ms: f64,
    pub request_id: &'a str,
    pub ranking_id: Uuid,
    /// The algorithm that produced the response.
    pub algo: Algo,
    pub served_by: ServedBy,
    pub fallback: bool,
    /// Names of the parts that were missing. Empty if none was.
    pub degraded: &'a [String],
    pub policy: PolicyName<'a>,
    #[schema(required = true)]
    pub experiment: Option<ExperimentName<'a>>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PolicyName<'a> {
    pub name: &'a str,
    pub version: &'a str,
    /// Effective digest, which includes the parameter values of an experiment.
    pub digest: &'a str,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ExperimentName<'a> {
    pub key: &'a str,
    pub variation: &'a str,
}

/// Returns a page of the viewer's feed.
#[utoipa::path(get, path = "/api/v1/feed", tag = "clients", security(("viewer" = [])),
    params(
        ("algo" = Option<String>, Query, description = "`ch` (default) or `timeline`"),
        ("limit" = Option<u32>, Query, description = "1 … 100, default 50"),
        ("cursor" = Option<String>, Query, description = "`cursor` of the previous page; continues the same ranking"),
    ),
    responses(
        (status = 200, body = FeedResponse),
        (status = 400, body = Problem), (status = 401, body = Problem), (status = 410, body = Problem, description = "The ranking of the cursor has expired; start again without a cursor"),
        (status = 429, body = Problem), (status = 503, body = Problem)))]
pub async fn feed(
    State(app): State<Arc<App>>,
    Viewer(viewer): Viewer,
    query: Query,
) -> Result<Response, Problem> {
    let started = Instant::now();
    let request = read_request(&app.feed, viewer, &query)?;
    let page = serve(&app.feed, &request).await?;
    let took = started.elapsed();
    observe(&app.feed, &page, took);
    Ok(render(&page, &request.request_id, took))
}

fn read_request(feed: &Feed, viewer: u64, query: &Query) -> Result<FeedRequest, Problem> {
    let algo = match query.get("algo") {
        None | Some("ch") => Algo::Ranked,
        Some("timeline") => Algo::Timeline,
        Some(_) => return Err(Problem::invalid_field("algo", "must be ch or timeline")),
    };
    let limit = query.limit(LIMIT_DEFAULT, LIMIT_MAX)? as usize;
    let cursor = query
        .get("cursor")
        .filter(|text| !text.is_empty())
        .map(|text| feed.parts.cursor_key.decode(viewer, text))
        .transpose()
        .map_err(|error| Problem::invalid_field("cursor", error.to_string()))?;
    Ok(FeedRequest {
        viewer,
        algo,
        limit,
        cursor,
        request_id: request_id(),
    })
}

fn served_by(page: &FeedPage) -> ServedBy {
    if page.is_stand_in {
        ServedBy::Snapshot
    } else {
        page.snapshot.served_by
    }
}

fn observe(feed: &Feed, page: &FeedPage, took: Duration) {
    let snapshot = &page.snapshot;
    let (served_by, cache) = (
        served_by(page).as_str(),
        if page.cache_hit { "hit" } else { "miss" },
    );
    METRICS
        .feed_requests_total
        .with_label_values(&[snapshot.algo.as_str(), served_by, cache])
        .inc();
    METRICS
        .feed_duration_seconds
        .with_label_values(&[served_by, cache])
        .observe(took.as_secs_f64());
    feed.fallbacks.count(snapshot.fallback);
    let took_ms = took.as_secs_f64() * 1_000.0;
    // Complete responses from the cache are the common case and say nothing new, so they are
    // logged at debug level.
    if page.cache_hit && page.degraded.is_empty() {
        tracing::debug!(viewer = snapshot.viewer, ranking_id = %snapshot.ranking_id, served_by, cache, took_ms, "served a feed");
    } else {
        tracing::info!(
            viewer = snapshot.viewer,
            ranking_id = %snapshot.ranking_id,
            policy = snapshot.policy.label(),
            posts = snapshot.posts.len(),
            served_by,
            cache,
            degraded = page.degraded.join(","),
            took_ms,
            "served a feed"
        );
    }
}

/// Renders the response. The posts are JSON already; the other fields are written around them.
fn render(page: &FeedPage, request_id: &str, took: Duration) -> Response {
    let snapshot = &page.snapshot;
    let rest = FeedResponse {
        posts: Vec::new(),
        cursor: page.next_cursor.as_deref(),
        total_count: page.total_count,
        cache_hit: page.cache_hit,
        response_time_ms: (took.as_secs_f64() * 1e6).round() / 1e3,
        request_id,
        ranking_id: snapshot.ranking_id,
        algo: snapshot.algo,
        served_by: served_by(page),
        fallback: snapshot.fallback,
        degraded: &page.degraded,
        policy: PolicyName {
            name: &snapshot.policy.name,
            version: &snapshot.policy.version,
            digest: &snapshot.policy.digest_hex,
        },
        experiment: snapshot
            .assignment
            .as_ref()
            .map(|assignment| ExperimentName {
                key: &assignment.experiment,
                variation: &assignment.variation,
            }),
    };
    let mut body = Vec::with_capacity(page.posts_json.len() + 768);
    body.extend_from_slice(b"{\"posts\":");
    body.extend_from_slice(&page.posts_json);
    let object_at = body.len();
    // Writing plain data into memory cannot fail.
    let _ = serde_json::to_writer(&mut body, &rest);
    // The other fields are rendered as an object of their own. Its opening brace is replaced by
    // the comma after the posts.
    if let Some(brace) = body.get_mut(object_at) {
        *brace = b',';
    }
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
