//! Middleware around every request: a timeout for bodies, panic handling, CORS, and the function
//! `observe`, which assigns the request id, counts the request and times it.

use crate::app::App;
use crate::config::origins::ANY_ORIGIN;
use crate::http::problem::{Problem, ProblemKind, etag};
use crate::request_id::REQUEST_ID;
use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use nova_support::metrics::METRICS;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tower_http::timeout::RequestBodyTimeoutLayer;
use uuid::Uuid;

pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");
const CORS_MAX_AGE: Duration = Duration::from_secs(3_600);
/// Headers of answers that a page may read.
const EXPOSED_HEADERS: [HeaderName; 5] = [
    REQUEST_ID_HEADER,
    header::RETRY_AFTER,
    header::ETAG,
    header::ALLOW,
    header::WWW_AUTHENTICATE,
];

pub fn layer(router: Router, app: Arc<App>) -> Router {
    let server = &app.config.server;
    // A single stack, outermost layer first. Separate layers would each box the request's future
    // again.
    let stack = ServiceBuilder::new()
        .layer(axum::middleware::from_fn_with_state(app.clone(), observe))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(RequestBodyTimeoutLayer::new(Duration::from_millis(
            server.body_timeout_ms,
        )));
    let router = router.layer(stack);
    if server.cors_origins.is_empty() {
        router
    } else {
        router.layer(cors(&server.cors_origins))
    }
}

/// Lets pages of these origins call. Every request header is allowed, because tracing and other
/// tools of a page add headers of their own, and the host trusts no header but the token.
fn cors(origins: &[String]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == ANY_ORIGIN) {
        AllowOrigin::any()
    } else {
        let origins = origins.iter();
        AllowOrigin::list(origins.filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::DELETE,
            Method::OPTIONS,
        ])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED_HEADERS)
        .max_age(CORS_MAX_AGE)
}

/// Routes whose answers show the registry. Their `ETag` is its revision. Answers that change while
/// the registry does not, such as the failures of a policy, have none.
const REGISTRY_ROUTES: [&str; 4] = [
    "/admin/v1/policies",
    "/admin/v1/experiments/{key}",
    "/admin/v1/cohorts/{key}",
    "/admin/v1/flags/{name}",
];

/// Returns the `ETag` of an answer that shows the registry, before the answer is made. If the
/// registry changes meanwhile, the tag is older than the answer, and a change that is based on it
/// is refused without need. A newer tag would let it overwrite the other change.
fn registry_tag(app: &App, method: &Method, endpoint: Option<&MatchedPath>) -> Option<HeaderValue> {
    let endpoint = endpoint?.as_str();
    let is_read = *method == Method::GET && REGISTRY_ROUTES.contains(&endpoint);
    is_read.then(|| HeaderValue::try_from(etag(app.deploy.revision())).ok())?
}

async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let request_id = request_id_of(&request);
    let method = request.method().clone();
    let endpoint = request.extensions().get::<MatchedPath>().cloned();
    let tag = registry_tag(&app, &method, endpoint.as_ref());
    let _active = Active::begin();
    let answer = async { as_problem(next.run(request).await) };
    let mut response = REQUEST_ID.scope(request_id.clone(), answer).await;
    let endpoint = endpoint.as_ref().map_or("unmatched", MatchedPath::as_str);
    let status = response.status();
    METRICS
        .api_requests_total
        .with_label_values(&[endpoint, method_label(&method), status.as_str()])
        .inc();
    METRICS
        .api_duration_seconds
        .with_label_values(&[endpoint])
        .observe(started.elapsed().as_secs_f64());
    if let Some(ProblemKind(kind)) = response.extensions().get() {
        METRICS
            .api_errors_total
            .with_label_values(&[endpoint, kind])
            .inc();
        let status = status.as_u16();
        tracing::info!(request_id = &*request_id, %method, endpoint, status, problem = kind, "answered a request with an error");
    }
    if let Some(tag) = tag
        && status == StatusCode::OK
    {
        response.headers_mut().insert(header::ETAG, tag);
    }
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    response
}

/// Converts plain 404 and 405 responses to problems. The crate that serves the API pages has
/// responses of its own, but clients should see one kind of error.
fn as_problem(response: Response) -> Response {
    let problem = match (
        response.status(),
        response.extensions().get::<ProblemKind>(),
    ) {
        (StatusCode::NOT_FOUND, None) => {
            Problem::not_found("there is no such page; GET /docs shows the API")
        }
        (StatusCode::METHOD_NOT_ALLOWED, None) => Problem::method_not_allowed(),
        _ => return response,
    };
    let mut answer = problem.into_response();
    if let Some(allow) = response.headers().get(header::ALLOW) {
        answer.headers_mut().insert(header::ALLOW, allow.clone());
    }
    answer
}

/// Returns the metric label of a method. A client may send any token as a method, and every
/// label value is kept forever, so unknown methods share one label.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::OPTIONS => "OPTIONS",
        Method::HEAD => "HEAD",
        _ => "other",
    }
}

/// Returns the caller's request id if it is short and plain enough for a log line, else a new
/// id.
fn request_id_of(request: &Request<Body>) -> Arc<str> {
    let given = request
        .headers()
        .get(REQUEST_ID_HEADER)
        .and_then(|value| value.to_str().ok());
    let plain = given.filter(|id| {
        (1..=64).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    });
    plain.map_or_else(|| Uuid::now_v7().to_string().into(), Arc::from)
}

/// Counts a request as active until it is dropped. It is also dropped if the client disconnects.
struct Active;

impl Active {
    fn begin() -> Self {
        METRICS.api_active_requests.inc();
        Self
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        METRICS.api_active_requests.dec();
    }
}

fn panicked(cause: Box<dyn Any + Send + 'static>) -> Response {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text
        .or_else(|| cause.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Problem::internal(&format!("a handler panicked: {text}")).into_response()
}

pub async fn not_found(request: Request) -> Problem {
    Problem::not_found(format!(
        "there is no {}; GET /openapi.json lists the routes",
        request.uri().path()
    ))
}

pub async fn method_not_allowed() -> Problem {
    Problem::method_not_allowed()
}
