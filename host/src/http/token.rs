//! Tokens: signing and verifying them. The audiences and the accepted algorithm are decided here.

use crate::http::problem::Problem;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use moka::sync::Cache;
use nova_model::event::ID_MAX;
use nova_support::clock::unix_ms;
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub const VIEWER_AUDIENCE: &str = "nova";
pub const ADMIN_AUDIENCE: &str = "nova-admin";
/// Largest accepted difference between the clocks of hosts and token issuers.
const LEEWAY_S: u64 = 10;
/// Largest token that is read. Tokens of this system are smaller.
const TOKEN_BYTES_MAX: usize = 4_096;
const KNOWN_VIEWERS_MAX: u64 = 100_000;
const KNOWN_VIEWER_LIFE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Operator,
    Scientist,
    Experimenter,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    exp: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roles: Vec<Role>,
}

/// The claims that are read. `roles` may contain roles of newer versions; they are ignored.
#[derive(Debug, Deserialize)]
pub struct Verified {
    pub sub: String,
    /// Seconds since the Unix epoch. RFC 7519 allows fractions.
    exp: f64,
    #[serde(default)]
    pub roles: Vec<serde_json::Value>,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Operator, Role::Scientist, Role::Experimenter];

    pub fn parse(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.as_str() == name)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Operator => "operator",
            Role::Scientist => "scientist",
            Role::Experimenter => "experimenter",
        }
    }
}

/// Signs and verifies tokens. The algorithm is fixed here and never taken from a token.
#[derive(Clone)]
pub struct TokenKeys {
    encoding: EncodingKey,
    decoding: DecodingKey,
    issuer: String,
    viewers: Validation,
    admins: Validation,
    /// Viewer tokens that were verified recently. A client sends the same token with every
    /// request, and verifying it takes a tenth of the time of a cached feed.
    known_viewers: Cache<Box<str>, KnownViewer>,
}

#[derive(Debug, Clone, Copy)]
struct KnownViewer {
    id: u64,
    expires_s: f64,
}

impl std::fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKeys")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl TokenKeys {
    pub fn new(secret: &[u8], issuer: &str) -> Self {
        let validation = |audience: &str| {
            let mut validation = Validation::new(Algorithm::HS256);
            validation.set_audience(&[audience]);
            validation.set_issuer(&[issuer]);
            validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
            validation.leeway = LEEWAY_S;
            validation.validate_nbf = true;
            validation
        };
        Self {
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
            issuer: issuer.to_owned(),
            viewers: validation(VIEWER_AUDIENCE),
            admins: validation(ADMIN_AUDIENCE),
            known_viewers: Cache::builder()
                .max_capacity(KNOWN_VIEWERS_MAX)
                .time_to_live(KNOWN_VIEWER_LIFE)
                .build(),
        }
    }

    /// Signs a token.
    ///
    /// # Errors
    /// Signing fails.
    pub fn sign(
        &self,
        subject: &str,
        audience: &str,
        roles: &[Role],
        ttl: Duration,
    ) -> anyhow::Result<String> {
        let exp = unix_ms() / 1_000 + ttl.as_secs();
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: audience.to_owned(),
            sub: subject.to_owned(),
            exp,
            roles: roles.to_vec(),
        };
        Ok(jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims,
            &self.encoding,
        )?)
    }

    fn verify(&self, token: &str, validation: &Validation) -> Result<Verified, Problem> {
        jsonwebtoken::decode::<Verified>(token, &self.decoding, validation)
            .map(|verified| verified.claims)
            .map_err(|error| Problem::unauthorized(refusal(&error)))
    }

    /// Verifies a token of the admin audience.
    ///
    /// # Errors
    /// The token is missing or is not valid.
    pub fn admin(&self, parts: &Parts) -> Result<Verified, Problem> {
        self.verify(bearer_token(parts)?, &self.admins)
    }

    /// Verifies a viewer's token and returns the viewer.
    ///
    /// # Errors
    /// The token is missing or is not valid, or its subject is no viewer id.
    pub fn viewer(&self, parts: &Parts) -> Result<u64, Problem> {
        let token = bearer_token(parts)?;
        if let Some(known) = self.known_viewers.get(token)
            && unix_ms() as f64 / 1_000.0 < known.expires_s
        {
            return Ok(known.id);
        }
        let verified = self.verify(token, &self.viewers)?;
        let id = verified
            .sub
            .parse()
            .ok()
            .filter(|id| (1..=ID_MAX).contains(id));
        let id = id.ok_or_else(|| Problem::unauthorized("the token's sub is not a viewer id"))?;
        let known = KnownViewer {
            id,
            expires_s: verified.exp,
        };
        self.known_viewers.insert(token.into(), known);
        Ok(id)
    }
}

fn bearer_token(parts: &Parts) -> Result<&str, Problem> {
    let header = parts
        .headers
        .get(AUTHORIZATION)
        .ok_or_else(|| Problem::unauthorized("send a bearer token"))?;
    header
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, token)| {
            scheme.eq_ignore_ascii_case("bearer") && token.len() <= TOKEN_BYTES_MAX
        })
        .map(|(_, token)| token.trim())
        .ok_or_else(|| Problem::unauthorized("the Authorization header is not a bearer token"))
}

/// Returns the reason for refusing a token, without details that its bearer does not already
/// know.
fn refusal(error: &jsonwebtoken::errors::Error) -> &'static str {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::InvalidSignature => {
            "the token was not signed with this host's key; run `nova token` with the NOVA_DATA_DIR or NOVA_JWT_SECRET of this host"
        }
        ErrorKind::InvalidAudience => {
            "the token is for another audience; /admin and /debug need one from `nova token --role ROLE`, the other routes one without a role"
        }
        ErrorKind::InvalidIssuer => "the token is from another issuer",
        ErrorKind::MissingRequiredClaim(_) => {
            "the token lacks a required claim: exp, iss, aud or sub"
        }
        ErrorKind::InvalidAlgorithm => "the token's algorithm is not accepted",
        _ => "the token is not valid",
    }
}
