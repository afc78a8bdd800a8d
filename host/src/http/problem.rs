//! Conversion of all errors to HTTP responses: `application/problem+json`, RFC 9457. Internal
//! causes are logged here and never sent.

use crate::feed::request::FeedError;
use crate::request_id::request_id;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nova_control::deploy::DeployError;
use nova_control::offline::RegistryUnavailable;
use nova_model::artifact::Stage;
use nova_policy::admission::Reason;
use nova_stores::ports::StoreError;
use serde::Serialize;
use std::borrow::Cow;
use std::sync::Arc;

/// An invalid field of the request, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Path of the field, such as `events[1].action`.
    pub field: String,
    pub message: String,
    /// Machine-readable reason, if a policy was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub code: Option<Cow<'static, str>>,
    /// Stage that the reason applies to, if a policy was refused. Absent if it applies to the
    /// whole policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stage: Option<Stage>,
}

impl FieldError {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
            code: None,
            stage: None,
        }
    }
}

impl From<&Reason> for FieldError {
    fn from(reason: &Reason) -> Self {
        Self {
            code: Some(reason.code.clone()),
            stage: reason.stage,
            ..Self::new("policy", &reason.message)
        }
    }
}

/// An error response (RFC 9457).
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// Kind of the problem, e.g. `cursor-expired`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub title: &'static str,
    pub status: u16,
    #[schema(value_type = String)]
    pub detail: Box<str>,
    #[schema(value_type = String)]
    pub request_id: Arc<str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// The registry's revision, if it is not the one that `If-Match` named.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    // In a box, because every handler's result has room for a problem.
    pub revision: Option<Box<i64>>,
    #[serde(skip)]
    pub retry_after_s: Option<u64>,
}

/// Returns the `ETag` of the registry's state at a revision.
pub fn etag(revision: i64) -> String {
    format!("\"{revision}\"")
}

/// Kind of an error response, for metrics.
#[derive(Debug, Clone, Copy)]
pub struct ProblemKind(pub &'static str);

impl Problem {
    fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            title,
            status: status.as_u16(),
            detail: detail.into().into_boxed_str(),
            request_id: request_id(),
            errors: Vec::new(),
            revision: None,
            retry_after_s: None,
        }
    }

    /// Returns a 400 that lists every invalid field.
    pub fn invalid(errors: impl IntoIterator<Item = (String, String)>) -> Self {
        let errors: Vec<FieldError> = errors
            .into_iter()
            .map(|(field, message)| FieldError::new(field, message))
            .collect();
        let detail = match errors.as_slice() {
            [one] => format!("{} {}", one.field, one.message),
            many => format!("{} fields are invalid", many.len()),
        };
        Self {
            errors,
            ..Self::new(
                StatusCode::BAD_REQUEST,
                "invalid-request",
                "Invalid request",
                detail,
            )
        }
    }

    pub fn invalid_field(field: &str, message: impl Into<String>) -> Self {
        Self::invalid([(field.to_owned(), message.into())])
    }

    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::malformed_at(".", detail)
    }

    /// Returns a 400 for a body with an error at this path. `.` is the whole body, and so is a field
    /// without a name.
    pub fn malformed_at(path: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let field = match path {
            "" | "." => "body",
            path => path,
        };
        Self {
            errors: vec![FieldError::new(field, &detail)],
            ..Self::new(
                StatusCode::BAD_REQUEST,
                "malformed-body",
                "Malformed body",
                detail,
            )
        }
    }

    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "Unauthorized",
            detail,
        )
    }

    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Forbidden", detail)
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "Method not allowed",
            "this route exists, but not with this method; GET /openapi.json describes it",
        )
    }

    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "Conflict", detail)
    }

    pub fn too_large(bytes_max: usize) -> Self {
        let detail = format!("the body is too large; send at most {bytes_max} bytes");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            "Body too large",
            detail,
        )
    }

    pub fn timeout(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", "Timeout", detail)
    }

    pub fn rate_limited(retry_after_s: u64) -> Self {
        let detail = format!("too many requests; try again in {retry_after_s} s");
        let problem = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate-limited",
            "Too many requests",
            detail,
        );
        Self {
            retry_after_s: Some(retry_after_s),
            ..problem
        }
    }

    pub fn unavailable(detail: impl Into<String>) -> Self {
        let problem = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "Unavailable",
            detail,
        );
        Self {
            retry_after_s: Some(1),
            ..problem
        }
    }

    /// Returns a 500, for a bug or an unforeseen failure. Logs the cause.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed with an internal error; answering 500");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Internal error",
            "an unexpected error occurred; this host's log has the cause",
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (retry_after_s, kind) = (self.retry_after_s, self.kind);
        let tag = self.revision.as_deref().copied().map(etag);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(Ok(tag)) = tag.map(HeaderValue::try_from) {
            headers.insert(header::ETAG, tag);
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(ProblemKind(kind));
        response
    }
}

impl From<FeedError> for Problem {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::CursorExpired => Self::new(
                StatusCode::GONE,
                "cursor-expired",
                "Cursor expired",
                error.to_string(),
            ),
            FeedError::Unavailable => Self::unavailable(error.to_string()),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(
            store = error.store,
            query = error.query,
            cause = format!("{:#}", error.source),
            "a store query failed; answering 503"
        );
        Self::unavailable(format!("{} does not answer", error.store))
    }
}

impl From<DeployError> for Problem {
    fn from(error: DeployError) -> Self {
        match error {
            DeployError::Refused(refusal) => {
                let errors = refusal.reasons.iter().map(FieldError::from).collect();
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Self {
                    errors,
                    ..Self::new(status, "policy-refused", "Policy refused", refusal.text())
                }
            }
            DeployError::NotFound(reason) => Self::not_found(reason),
            DeployError::Conflict(reason) | DeployError::Overtaken(reason) => {
                Self::conflict(reason)
            }
            DeployError::Outdated { current, .. } => Self {
                revision: Some(Box::new(current)),
                ..Self::new(
                    StatusCode::PRECONDITION_FAILED,
                    "precondition-failed",
                    "Precondition failed",
                    error.to_string(),
                )
            },
            DeployError::Busy => Self::unavailable(error.to_string()),
            DeployError::Invalid(errors) => Self::invalid(errors),
            DeployError::Recorded(cause) => {
                tracing::error!(
                    cause = format!("{cause:#}"),
                    "a recorded change could not be applied on this host; trying again"
                );
                Self::unavailable(
                    "the change is recorded, but not yet in force on this host; the host applies it automatically",
                )
            }
            DeployError::RegistryRefused(cause) => {
                tracing::error!(
                    cause = format!("{cause:#}"),
                    "the registry refused a change; answering 500"
                );
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "registry-refused",
                    "Registry refused",
                    format!(
                        "the policy registry refused this and would refuse it again; nothing was changed: {}",
                        cause.root_cause()
                    ),
                )
            }
            DeployError::Unavailable(cause) => {
                tracing::error!(
                    cause = format!("{cause:#}"),
                    "a registry call failed; answering 503"
                );
                let detail = match cause.downcast_ref::<RegistryUnavailable>() {
                    Some(unavailable) => format!("nothing was changed: {unavailable}"),
                    None => "the policy registry does not answer; nothing was changed".into(),
                };
                Self::unavailable(detail)
            }
        }
    }
}
