//! Authentication and authorisation of callers. The argument types of a handler state which
//! caller it accepts, so no handler can be called without its check.

use super::token::Role;
use crate::app::App;
use crate::http::problem::Problem;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
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
    permission: PhantomData<P>,
}

impl<P: Permission> FromRequestParts<Arc<App>> for Admin<P> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let verified = app.token_keys.admin(parts)?;
        let has = |role: &Role| verified.roles.iter().any(|name| name == role.as_str());
        if P::ROLES.iter().any(has) {
            return Ok(Self {
                actor: verified.actor,
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
