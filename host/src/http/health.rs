//! Health, readiness and metrics routes. They are open and never rate-limited, because
//! monitoring needs an answer most of all under load.

use super::pings::{Component, ComponentState, Components};
use crate::app::App;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use nova_support::metrics::METRICS;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Health {
    /// `up` if every component is up, `down` if no feed can be served, else `degraded`.
    pub status: ComponentState,
    pub components: BTreeMap<&'static str, Component>,
}

fn policies(app: &App) -> Component {
    if app.deploy.serving().active_in_service().is_none() {
        return Component::not_up(
            ComponentState::Degraded,
            "every policy is in quarantine; feeds use the native ranker until a policy is activated",
        );
    }
    if app.deploy.is_unavailable() {
        return Component::not_up(
            ComponentState::Degraded,
            "the registry does not answer; the last known policies serve",
        );
    }
    Component::up()
}

async fn components(app: &Arc<App>) -> Components {
    let mut components = app.pings.components(&app.stores).await;
    let spool = match (app.spool.is_healthy(), app.spool.is_full()) {
        (false, _) => Component::not_up(
            ComponentState::Down,
            "the last write to the spool failed; events are refused",
        ),
        (_, true) => Component::not_up(
            ComponentState::Down,
            "the spool is full; events are refused until some have been processed",
        ),
        (true, false) => Component::up(),
    };
    components.insert("spool", spool);
    components.insert("policies", policies(app));
    components
}

/// Reports if feeds can be served: candidates or at least a timeline can be fetched.
fn can_serve(app: &App, components: &BTreeMap<&'static str, Component>) -> bool {
    [app.stores.candidates.name(), app.stores.relational.name()]
        .iter()
        .filter_map(|store| components.get(store))
        .any(|component| component.state != ComponentState::Down)
}

/// Reports the state of every component. The status is 200 as long as feeds can be served at
/// all.
#[utoipa::path(get, path = "/health", tag = "machines", 
    responses((status = 200, body = Health), (status = 503, body = Health, description = "No feed can be served: neither candidates nor a timeline can be fetched")))]
pub async fn health(State(app): State<Arc<App>>) -> (StatusCode, Json<Health>) {
    let components = components(&app).await;
    let whole = components
        .values()
        .all(|component| component.state == ComponentState::Up);
    let code = if can_serve(&app, &components) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let status = match (whole, code) {
        (true, _) => ComponentState::Up,
        (false, StatusCode::OK) => ComponentState::Degraded,
        (false, _) => ComponentState::Down,
    };
    (code, Json(Health { status, components }))
}

/// Reports that the process answers.
#[utoipa::path(get, path = "/livez", tag = "machines", responses((status = 200, body = String)))]
pub async fn livez() -> &'static str {
    "live"
}

/// Reports if this host should get traffic. It should not while it is stopping, if no feed can
/// be served, or if events cannot be made durable. A missing broker or cache does not count,
/// because the responses name the missing parts.
#[utoipa::path(get, path = "/readyz", tag = "machines",
    responses((status = 200, body = String), (status = 503, body = String)))]
pub async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, String) {
    if app.stopping.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping".to_owned());
    }
    let components = components(&app).await;
    let spool_up = components
        .get("spool")
        .is_some_and(|spool| spool.state == ComponentState::Up);
    if spool_up && can_serve(&app, &components) {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let down: Vec<&str> = components
        .iter()
        .filter(|(_, component)| component.state == ComponentState::Down)
        .map(|(name, _)| *name)
        .collect();
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not ready: {}", down.join(", ")),
    )
}

/// Returns the metrics in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "machines", responses((status = 200, body = String)))]
pub async fn metrics() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        METRICS.render(),
    )
}
