//! The routes, grouped by type of caller. The argument types of the handlers state
//! authentication and rate limits.

pub mod activity;
pub mod admin_audit;
pub mod admin_experiments;
mod admin_failures;
pub mod admin_flags;
pub mod admin_lifecycle;
pub mod admin_policies;
pub mod auth;
pub mod claims;
pub mod debug;
pub mod discover;
pub mod events;
pub mod explain;
pub mod extract;
pub mod feed;
pub mod health;
pub mod limits;
pub mod metrics_report;
pub mod middleware;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod openapi_tests;
pub mod pings;
pub mod problem;
pub mod server;
pub mod token;
pub mod uploads;

use crate::app::App;
use axum::Router;
use std::sync::Arc;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[derive(OpenApi)]
#[openapi(
    info(title = "Nova", description = "A feed-ranking host whose policies are WebAssembly components."),
    modifiers(&BearerTokens),
    tags(
        (name = "clients", description = "Routes for clients. They need a bearer token of audience `nova`, whose `sub` is the viewer."),
        (name = "admin", description = "Routes for administration. They need a bearer token of audience `nova-admin` with roles."),
        (name = "machines", description = "Routes for monitoring. They are open and never rate-limited.")
    )
)]
struct Api;

struct BearerTokens;

impl utoipa::Modify for BearerTokens {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let components = openapi.components.get_or_insert_with(Default::default);
        for name in ["viewer", "admin"] {
            components.add_security_scheme(
                name,
                SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
            );
        }
    }
}

/// Returns the router with every route of the host.
pub fn router(app: Arc<App>) -> Router {
    let (router, openapi) = routes().split_for_parts();
    let docs = utoipa_swagger_ui::SwaggerUi::new("/docs").url("/openapi.json", openapi);
    let router = router
        .fallback(middleware::not_found)
        .method_not_allowed_fallback(middleware::method_not_allowed)
        .merge(docs)
        .with_state(app.clone());
    middleware::layer(router, app)
}

/// Returns the documented routes, which are all but those of the documentation itself.
fn routes() -> OpenApiRouter<Arc<App>> {
    let clients = OpenApiRouter::new()
        .routes(routes!(feed::feed))
        .routes(routes!(discover::trending))
        .routes(routes!(discover::suggested_users))
        .routes(routes!(events::accept))
        .routes(routes!(metrics_report::daily));
    let admin = OpenApiRouter::new()
        .routes(routes!(admin_policies::list, admin_policies::upload))
        .routes(routes!(admin_policies::prune))
        .routes(routes!(admin_policies::activate))
        .routes(routes!(
            admin_lifecycle::shadow,
            admin_lifecycle::end_shadow,
            admin_lifecycle::shadow_report
        ))
        .routes(routes!(admin_lifecycle::canary))
        .routes(routes!(admin_lifecycle::retire))
        .routes(routes!(admin_lifecycle::quarantine))
        .routes(routes!(admin_lifecycle::lift))
        .routes(routes!(admin_failures::failures))
        .routes(routes!(admin_policies::rollback))
        .routes(routes!(admin_audit::audit))
        .routes(routes!(admin_audit::head))
        .routes(routes!(
            admin_experiments::get_cohort,
            admin_experiments::put_cohort
        ))
        .routes(routes!(
            admin_experiments::get_experiment,
            admin_experiments::put_experiment
        ))
        .routes(routes!(admin_experiments::start))
        .routes(routes!(admin_experiments::pause))
        .routes(routes!(admin_experiments::stop))
        .routes(routes!(admin_experiments::results))
        .routes(routes!(admin_flags::get_flag, admin_flags::put_flag))
        .routes(routes!(debug::feed_cache))
        .routes(routes!(explain::explain))
        .routes(routes!(debug::post_metrics))
        .routes(routes!(debug::system_state));
    let machines = OpenApiRouter::new()
        .routes(routes!(health::health))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics));
    OpenApiRouter::with_openapi(Api::openapi())
        .merge(clients)
        .merge(admin)
        .merge(machines)
}
