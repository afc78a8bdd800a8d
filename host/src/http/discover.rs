//! Routes of trending posts (no token needed) and suggested users.

use super::auth::{Anybody, Viewer};
use super::extract::Query;
use crate::app::App;
use crate::discover::suggested::{LIMIT_DEFAULT, LIMIT_MAX as USERS_MAX};
use crate::discover::trending::{LIMIT_MAX as POSTS_MAX, TrendingItem, Window};
use crate::http::problem::Problem;
use axum::Json;
use axum::extract::State;
use nova_model::user::SuggestedUser;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct TrendingResponse {
    pub posts: Vec<TrendingItem>,
    pub window: &'static str,
    pub count: usize,
    pub cache_hit: bool,
    /// Name of the store that did not answer, if this is an older list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<&'static str>,
}

/// Lists the posts with the most engagement in a window of whole hours.
#[utoipa::path(get, path = "/api/v1/feed/trending", tag = "clients",
    params(
        ("window" = Option<String>, Query, description = "`1h` (default), `24h` or `7d`"),
        ("limit" = Option<u32>, Query, description = "1 … 200, default 200"),
    ),
    responses((status = 200, body = TrendingResponse), (status = 400, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem)))]
pub async fn trending(
    State(app): State<Arc<App>>,
    _anybody: Anybody,
    query: Query,
) -> Result<Json<TrendingResponse>, Problem> {
    let window = Window::parse(query.get("window").unwrap_or("1h"));
    let window = window.ok_or_else(|| Problem::invalid_field("window", "must be 1h, 24h or 7d"))?;
    let limit = query.limit(POSTS_MAX, POSTS_MAX)? as usize;
    let (ttl, timeout) = {
        let live = app.live();
        (
            Duration::from_secs(live.ttl.trending_s),
            Duration::from_millis(live.feed.source_timeout_ms),
        )
    };
    let list = app.trending.list(window, ttl, timeout).await?;
    let deleted = app.feed.deleted.current();
    let posts: Vec<TrendingItem> = list
        .posts
        .iter()
        .filter(|post| !deleted.contains(post.post_id))
        .take(limit)
        .cloned()
        .collect();
    Ok(Json(TrendingResponse {
        count: posts.len(),
        posts,
        window: window.as_str(),
        cache_hit: list.cache_hit,
        degraded: list.degraded.into_iter().collect(),
    }))
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SuggestedUsersResponse {
    pub users: Vec<SuggestedUser>,
    pub cache_hit: bool,
    pub computation_time_ms: f64,
}

/// Lists users whom the viewer may want to follow.
#[utoipa::path(get, path = "/api/v1/discover/suggested-users", tag = "clients", security(("viewer" = [])),
    params(("limit" = Option<u32>, Query, description = "1 … 50, default 20")),
    responses((status = 200, body = SuggestedUsersResponse), (status = 400, body = Problem), (status = 401, body = Problem), (status = 503, body = Problem)))]
pub async fn suggested_users(
    State(app): State<Arc<App>>,
    Viewer(viewer): Viewer,
    query: Query,
) -> Result<Json<SuggestedUsersResponse>, Problem> {
    let started = Instant::now();
    let limit = query.limit(LIMIT_DEFAULT, USERS_MAX)? as usize;
    let (ttl, timeout) = {
        let live = app.live();
        (
            Duration::from_secs(live.ttl.suggestions_s),
            Duration::from_millis(live.feed.source_timeout_ms),
        )
    };
    let (users, cache_hit) = app.suggestions.list(viewer, ttl, timeout).await?;
    Ok(Json(SuggestedUsersResponse {
        users: users.into_iter().take(limit).collect(),
        cache_hit,
        computation_time_ms: (started.elapsed().as_secs_f64() * 1e6).round() / 1e3,
    }))
}
