//! Request parsing: query strings, path segments and bodies, with errors that name the field.

#![expect(
    clippy::disallowed_methods,
    reason = "waits for a client's body, not for a store"
)]

use crate::app::App;
use crate::http::problem::Problem;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::Uri;
use axum::http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use nova_model::event::{ID_MAX, parse_id};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// The decoded query string.
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        Ok(Self::from_uri(&parts.uri))
    }
}

fn url_decode(query: &str) -> Vec<(String, String)> {
    axum::extract::Query::<Vec<(String, String)>>::try_from_uri(
        &format!("/?{query}").parse().unwrap_or_default(),
    )
    .map(|axum::extract::Query(pairs)| pairs)
    .unwrap_or_default()
}

impl Query {
    pub fn from_uri(uri: &Uri) -> Self {
        Self(url_decode(uri.query().unwrap_or_default()))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns `limit`, which must be within 1 … `max`.
    ///
    /// # Errors
    /// 400 for any other value.
    pub fn limit(&self, default: u32, max: u32) -> Result<u32, Problem> {
        let Some(text) = self.get("limit") else {
            return Ok(default);
        };
        let limit = text.parse().ok().filter(|limit| (1..=max).contains(limit));
        limit.ok_or_else(|| {
            Problem::invalid_field("limit", format!("must be an integer, 1 … {max}"))
        })
    }
}

/// Time limit for receiving a whole body. A client that sends single bytes must not hold a
/// connection.
const BODY_TIME_MAX: Duration = Duration::from_secs(120);

/// Reads a whole body of at most `bytes_max` bytes.
///
/// # Errors
/// 413 if the body is larger, 408 if the client pauses too long, 400 if the body ends early.
pub async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let whole = tokio::time::timeout(BODY_TIME_MAX, Limited::new(body, bytes_max).collect()).await;
    match whole
        .map_err(|_| Problem::timeout("the request body did not arrive in time; send it faster"))?
    {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Problem::too_large(bytes_max))
        }
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(error.as_ref());
            while let Some(error) = cause {
                if error.is::<tower_http::timeout::TimeoutError>() {
                    return Err(Problem::timeout(
                        "the request body did not arrive in time; send it faster",
                    ));
                }
                cause = error.source();
            }
            Err(Problem::malformed(
                "the request body ended before it was complete",
            ))
        }
    }
}

/// A JSON body that contains exactly one value.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        let bytes = read_body(request.into_body(), app.live().limits.body_bytes_max).await?;
        parse(&bytes).map(Self)
    }
}

/// Parses a JSON text that contains exactly one value.
///
/// # Errors
/// 400 that names the field, as far as the text could be read.
fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(json).map_err(|error| {
        // Read a second time, so that only bodies with an error pay for the path.
        let mut reader = serde_json::Deserializer::from_slice(json);
        match serde_path_to_error::deserialize::<_, T>(&mut reader) {
            Ok(_) => Problem::malformed(error.to_string()),
            Err(at) => {
                let path: String = at.path().to_string().chars().take(PATH_CHARS_MAX).collect();
                Problem::malformed_at(&path, error.to_string())
            }
        }
    })
}

/// Longest path of a field that an error repeats.
const PATH_CHARS_MAX: usize = 100;

/// A JSON body, or an empty one, which is the default value.
#[derive(Debug)]
pub struct OptionalJson<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<Arc<App>> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        let bytes = read_body(request.into_body(), app.live().limits.body_bytes_max).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        parse(&bytes).map(Self)
    }
}

/// An id in a path, 1 … 2^53 − 1.
#[derive(Debug, Clone, Copy)]
pub struct Id(pub u64);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = Path::<String>::from_request_parts(parts, state).await?;
        parse_id(&id).map(Self).ok_or_else(|| {
            Problem::invalid_field("id", format!("must be an integer, 1 … {ID_MAX}"))
        })
    }
}

/// Captured path segments.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(segments)| Self(segments))
            .map_err(|rejection| Problem::invalid_field("path", rejection.body_text()))
    }
}
