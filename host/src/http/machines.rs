//! Health, readiness and metrics: open and never limited, because whoever asks must get an answer most of all under load.

use crate::app::App;
use crate::metrics::METRICS;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A store that takes longer than this to say hello is not up.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ComponentState {
    Up,
    Degraded,
    Down,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Component {
    pub state: ComponentState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Health {
    /// `up` when every component is.
    pub status: ComponentState,
    pub components: BTreeMap<&'static str, Component>,
}

impl Component {
    fn up() -> Self {
        Self {
            state: ComponentState::Up,
            detail: None,
        }
    }

    fn not_up(state: ComponentState, detail: impl Into<String>) -> Self {
        Self {
            state,
            detail: Some(detail.into()),
        }
    }
}

async fn components(app: &App) -> BTreeMap<&'static str, Component> {
    let store = app.stores.candidates.name();
    let ping = match tokio::time::timeout(PING_TIMEOUT, app.stores.candidates.ping()).await {
        Ok(Ok(())) => Component::up(),
        Ok(Err(error)) => {
            tracing::warn!(%error, "health");
            Component::not_up(ComponentState::Down, "queries fail")
        }
        Err(_) => Component::not_up(ComponentState::Down, "no answer within 1 s"),
    };
    let spool = match (app.spool.is_healthy(), app.spool.is_full()) {
        (false, _) => Component::not_up(
            ComponentState::Down,
            "the last write failed; events are refused",
        ),
        (_, true) => Component::not_up(
            ComponentState::Down,
            "full; events are refused until some are counted",
        ),
        (true, false) => Component::up(),
    };
    BTreeMap::from([
        (store, ping),
        ("spool", spool),
        ("policies", Component::up()),
    ])
}

/// Every component. 200 for as long as feeds can be served at all.
#[utoipa::path(get, path = "/health", tag = "machines", 
    responses((status = 200, body = Health), (status = 503, body = Health, description = "No feed can be ranked: the store is down")))]
pub async fn health(State(app): State<Arc<App>>) -> (StatusCode, Json<Health>) {
    let components = components(&app).await;
    let whole = components
        .values()
        .all(|component| component.state == ComponentState::Up);
    let status = if whole {
        ComponentState::Up
    } else {
        ComponentState::Degraded
    };
    let store = components.get(app.stores.candidates.name());
    let code = match store {
        Some(Component {
            state: ComponentState::Down,
            ..
        }) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    (code, Json(Health { status, components }))
}

/// The process answers.
#[utoipa::path(get, path = "/livez", tag = "machines", responses((status = 200, body = String)))]
pub async fn livez() -> &'static str {
    "live"
}

/// Whether traffic should come here: not while stopping, nor when events cannot be made durable.
#[utoipa::path(get, path = "/readyz", tag = "machines",
    responses((status = 200, body = String), (status = 503, body = String)))]
pub async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, String) {
    if app.stopping.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping".to_owned());
    }
    let components = components(&app).await;
    let down: Vec<&str> = components
        .iter()
        .filter(|(_, component)| component.state == ComponentState::Down)
        .map(|(name, _)| *name)
        .collect();
    if down.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {}", down.join(", ")),
        )
    }
}

/// Prometheus text.
#[utoipa::path(get, path = "/metrics", tag = "machines", responses((status = 200, body = String)))]
pub async fn metrics() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        METRICS.render(),
    )
}
