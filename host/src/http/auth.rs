//! Authentication and authorisation of callers. The argument types of a handler state which
//! caller it accepts, so no handler can be called without its check.

use super::token::Role;
use crate::app::App;
use crate::http::problem::Problem;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::header;
use axum::http::request::Parts;
use nova_control::deploy::Author;
use nova_model::event::parse_digits;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;

/// A viewer who makes a request and is within the viewer rate limit.
#[derive(Debug, Clone, Copy)]
pub struct Viewer(pub u64);

impl FromRequestParts<Arc<App>> for Viewer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let viewer = app.token_keys.viewer(parts)?;
        app.rate_limits.load().viewer_request(viewer)?;
        Ok(Self(viewer))
    }
}

/// A viewer who sends events and is within the rate limit for event batches.
#[derive(Debug, Clone, Copy)]
pub struct EventSender(pub u64);

impl FromRequestParts<Arc<App>> for EventSender {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let viewer = app.token_keys.viewer(parts)?;
        app.rate_limits.load().viewer_event_batch(viewer)?;
        Ok(Self(viewer))
    }
}

/// Any caller within the rate limit of one address. Behind a proxy, the address is that of the
/// proxy, which then has to limit clients itself, because headers that name a client can be
/// forged.
#[derive(Debug, Clone, Copy)]
pub struct Anybody;

impl FromRequestParts<Arc<App>> for Anybody {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        if let Some(ConnectInfo(address)) = parts.extensions.get::<ConnectInfo<SocketAddr>>() {
            app.rate_limits.load().address_request(address.ip())?;
        }
        Ok(Self)
    }
}

/// Permission of an admin token. See docs/semantics.md, "Roles".
pub trait Permission {
    const ROLES: &'static [Role];
    const NAME: &'static str;
}

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident($text:literal): $($role:ident),+;)+) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl Permission for $name {
            const ROLES: &'static [Role] = &[$(Role::$role),+];
            const NAME: &'static str = $text;
        })+
    };
}

permissions! {
    /// Reads policies, experiments, the audit log, explanations and metrics.
    Read("read"): Operator, Scientist, Experimenter;
    /// Uploads policies.
    Upload("upload policies"): Operator, Scientist;
    /// Activates and rolls back policies, sets flags and reads the host's state.
    Operate("operate policies and flags"): Operator;
    /// Creates, starts, pauses and stops experiments, and changes cohorts.
    Experiment("change experiments"): Operator, Experimenter;
}

/// A caller of the admin audience who has the permission `P`.
#[derive(Debug, Clone)]
pub struct Admin<P> {
    /// Subject of the token, for the audit log.
    pub actor: String,
    /// Revision of the header `If-Match`.
    if_revision: Option<i64>,
    permission: PhantomData<P>,
}

/// The precondition of a change, for the description of the API.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes the header")]
pub struct IfMatch {
    /// The registry's revision in quotes, as the `ETag` of an answer has it. If the registry has
    /// another revision, nothing changes and the response is 412. Without the header, the change
    /// is made at any revision.
    #[param(rename = "If-Match", value_type = Option<String>)]
    if_match: Option<String>,
}

impl<P> Admin<P> {
    /// Returns the caller as the author of a change, with the precondition of the request.
    pub fn author(&self) -> Author<'_> {
        Author {
            if_revision: self.if_revision,
            ..Author::from(&self.actor)
        }
    }
}

/// Returns the revision that `If-Match` names. `*` matches every revision.
fn if_match(parts: &Parts) -> Result<Option<i64>, Problem> {
    let mut values = parts.headers.get_all(header::IF_MATCH).iter();
    let invalid = || {
        Problem::invalid_field(
            "If-Match",
            "must be one revision in quotes, as the ETag of an answer has it, e.g. \"42\"",
        )
    };
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| invalid())?.trim();
            if text == "*" {
                return Ok(None);
            }
            let quoted = text
                .strip_prefix('"')
                .and_then(|text| text.strip_suffix('"'));
            let revision = quoted.and_then(parse_digits).map(i64::try_from);
            let revision = revision.and_then(Result::ok).ok_or_else(invalid)?;
            Ok(Some(revision))
        }
        (Some(_), Some(_)) => Err(invalid()),
    }
}

impl<P: Permission> FromRequestParts<Arc<App>> for Admin<P> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let verified = app.token_keys.admin(parts)?;
        let has = |role: &Role| verified.roles.iter().any(|name| name == role.as_str());
        if P::ROLES.iter().any(has) {
            return Ok(Self {
                actor: verified.actor,
                if_revision: if_match(parts)?,
                permission: PhantomData,
            });
        }
        Err(Problem::forbidden(format!(
            "you need the role {} to {}; get a token with that role",
            P::ROLES
                .iter()
                .map(|role| role.as_str())
                .collect::<Vec<_>>()
                .join(" or "),
            P::NAME
        )))
    }
}
