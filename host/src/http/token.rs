//! Tokens: signing and verifying them. The audiences and the accepted algorithm are decided here.

use crate::http::claims::{self, Claims};
use crate::http::problem::Problem;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use moka::sync::Cache;
use nova_support::clock::unix_ms;
use nova_support::secret_key::SecretKey;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

pub const VIEWER_AUDIENCE: &str = "nova";
pub const ADMIN_AUDIENCE: &str = "nova-admin";
/// Largest accepted difference between the clocks of hosts and token issuers.
const LEEWAY_S: u64 = 10;
/// Largest token that is read. Identity providers put groups and permissions into tokens.
pub const TOKEN_BYTES_MAX: usize = 16 * 1_024;
/// Memory for the texts of recently verified tokens: about 100,000 of this system's own.
const KNOWN_VIEWERS_BYTES_MAX: u64 = 32 << 20;
const KNOWN_VIEWER_LIFE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Operator,
    Scientist,
    Experimenter,
}

/// The claims of a token that this host signs.
#[derive(Debug, Serialize)]
struct Signed<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    exp: u64,
    #[serde(skip_serializing_if = "<[Role]>::is_empty")]
    roles: &'a [Role],
}

/// The holder of a verified admin token.
#[derive(Debug)]
pub struct VerifiedAdmin {
    pub actor: String,
    /// Names of roles. They may be those of newer versions, which are ignored.
    pub roles: Vec<String>,
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
    known_viewers: Cache<Arc<str>, KnownViewer>,
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
    pub fn new(secret: &SecretKey, issuer: &str) -> Self {
        let validation = |audience: &str| {
            let mut validation = Validation::new(Algorithm::HS256);
            validation.set_audience(&[audience]);
            validation.set_issuer(&[issuer]);
            // `sub` is checked by the module `claims`, because the library accepts only strings.
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
            validation.leeway = LEEWAY_S;
            validation.validate_nbf = true;
            validation
        };
        Self {
            encoding: EncodingKey::from_secret(secret.as_bytes()),
            decoding: DecodingKey::from_secret(secret.as_bytes()),
            issuer: issuer.to_owned(),
            viewers: validation(VIEWER_AUDIENCE),
            admins: validation(ADMIN_AUDIENCE),
            known_viewers: Cache::builder()
                .max_capacity(KNOWN_VIEWERS_BYTES_MAX)
                .weigher(|token: &Arc<str>, _| u32::try_from(token.len()).unwrap_or(u32::MAX))
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
        let claims = Signed {
            iss: &self.issuer,
            aud: audience,
            sub: subject,
            exp,
            roles,
        };
        Ok(jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims,
            &self.encoding,
        )?)
    }

    fn verify(&self, token: &str, validation: &Validation) -> Result<Claims, Problem> {
        let verified = jsonwebtoken::decode::<Claims>(token, &self.decoding, validation)
            .map_err(|error| Problem::unauthorized(refusal(token, &error)))?;
        // RFC 7515, section 4.1.11: a token is invalid if its reader does not understand a
        // parameter that the header calls critical. This host understands none.
        if verified.header.crit.is_some() {
            return Err(Problem::unauthorized(
                "the token's header has `crit`, but this host supports no critical parameter",
            ));
        }
        Ok(verified.claims)
    }

    /// Verifies a token of the admin audience.
    ///
    /// # Errors
    /// The token is missing or is not valid.
    pub fn admin(&self, parts: &Parts) -> Result<VerifiedAdmin, Problem> {
        let claims = self.verify(bearer_token(parts)?, &self.admins)?;
        Ok(VerifiedAdmin {
            actor: claims::actor(&claims).map_err(Problem::unauthorized)?,
            roles: claims::roles(&claims).map_err(Problem::unauthorized)?,
        })
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
        let claims = self.verify(token, &self.viewers)?;
        let id = claims::viewer(&claims).map_err(Problem::unauthorized)?;
        let known = KnownViewer {
            id,
            expires_s: claims::expires_s(&claims),
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
    let token = header
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| Problem::unauthorized("the Authorization header is not a bearer token"))?;
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Problem::unauthorized(format!(
            "the token is too long; this host reads at most {TOKEN_BYTES_MAX} bytes"
        )));
    }
    Ok(token)
}

/// Returns the reason for refusing a token, without details that its bearer does not already
/// know.
fn refusal(token: &str, error: &jsonwebtoken::errors::Error) -> String {
    use jsonwebtoken::errors::ErrorKind;
    let reason = match error.kind() {
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            return claims::missing(claim);
        }
        ErrorKind::ExpiredSignature => "the token has expired (claim `exp`)",
        ErrorKind::ImmatureSignature => "the token is not valid yet (claim `nbf`)",
        ErrorKind::InvalidSignature => {
            "the token was not signed with this host's key; run `nova token` with the NOVA_DATA_DIR or NOVA_JWT_SECRET of this host"
        }
        ErrorKind::InvalidAudience => {
            "the token is for another audience (claim `aud`); /admin and /debug need one from `nova token --role ROLE`, the other routes one without a role"
        }
        ErrorKind::InvalidIssuer => "the token is from another issuer (claim `iss`)",
        ErrorKind::InvalidAlgorithm => {
            "the token's algorithm is not accepted (header `alg`); sign it with HS256"
        }
        ErrorKind::Json(_) if has_compound_subject(token) => return claims::missing("sub"),
        ErrorKind::Json(_) => "the token's header or claims are not the JSON that is expected",
        _ => "the token is not a JSON Web Token in its compact form",
    };
    reason.to_owned()
}

/// Returns true if `sub` is a list or an object, for which the library names no claim. The token is
/// refused already, so nothing in it is trusted here.
fn has_compound_subject(token: &str) -> bool {
    jsonwebtoken::dangerous::insecure_decode::<Claims>(token).is_ok_and(|read| {
        read.claims
            .get("sub")
            .is_some_and(|sub| sub.is_array() || sub.is_object())
    })
}
