//! The PostgreSQL stores: the community's tables, for the timeline and viewer attributes, and
//! the policy registry. Connections are made on first use, so that a host starts while
//! PostgreSQL is down.

mod audit;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod audit_tests;
pub mod checksums;
pub mod migrate;
pub mod registry;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod registry_tests;
mod relational;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
pub(crate) mod testing;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

use super::breaker::Breaker;
use super::guard::{Failure, Guard};
use anyhow::Context as _;
use chrono::{DateTime, Utc};
use nova_model::time::UnixMs;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use std::borrow::Cow;
use std::str::FromStr as _;
use std::time::Duration;

/// The name in `degraded`, `/health` and metrics.
pub const STORE_NAME: &str = "postgres";

/// Maximum duration of one call. A viewer's own deadline may be shorter but cannot extend it.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Lifetime of a connection. Older connections are replaced, so that a pool recovers after a
/// failover.
const CONNECTION_LIFE: Duration = Duration::from_secs(30 * 60);

/// The store of users, follows and posts. Its clones share their connections.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    pool: PgPool,
    guard: Guard,
}

impl PostgresStore {
    /// Creates the store without connecting. `timeout` bounds each call, in this process and on
    /// the server.
    ///
    /// # Errors
    /// If `url` is not a PostgreSQL URL.
    pub fn new(url: &str, connections_max: u32, timeout: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            pool: pool(url, connections_max, timeout, timeout)?,
            guard: Guard::new(STORE_NAME, timeout),
        })
    }

    /// Replaces the default circuit breaker.
    #[must_use]
    pub fn with_breaker(self, breaker: Breaker) -> Self {
        Self {
            guard: self.guard.with_new_breaker(breaker),
            ..self
        }
    }

    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    pub fn connections_max(&self) -> u32 {
        self.pool.options().get_max_connections()
    }

    /// Returns the number of open connections and the number of idle ones among them.
    pub fn connections(&self) -> (u32, usize) {
        (self.pool.size(), self.pool.num_idle())
    }
}

/// Creates a pool that connects on first use.
pub(crate) fn pool(
    url: &str,
    connections_max: u32,
    connect_timeout: Duration,
    statement_timeout: Duration,
) -> anyhow::Result<PgPool> {
    let statement_timeout_ms = statement_timeout.as_millis().to_string();
    let options = connect_options(url)?.options([("statement_timeout", statement_timeout_ms)]);
    Ok(PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(connect_timeout)
        .max_lifetime(CONNECTION_LIFE)
        .connect_lazy_with(options))
}

pub(crate) fn connect_options(url: &str) -> anyhow::Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)
        .context("POSTGRES_URL must have the form postgres://user:password@host:5432/database")?;
    Ok(options.application_name("nova"))
}

/// SQLSTATE codes, or their first characters, after which the same call may succeed later: a
/// broken connection (08), a server that lets nobody in (28, 3D), a database that is read-only
/// during a failover (25006), a transaction that lost against another (40), exhausted resources
/// such as a full disk (53), an unavailable lock (55), an intervention by an operator or a timeout
/// (57), and internal errors of the server (58, XX). Every other code is a permanent refusal: data
/// that PostgreSQL cannot hold (22), a violated constraint (23), a missing grant or table (42).
///
/// Source: PostgreSQL, Appendix A, "PostgreSQL Error Codes".
const RETRYABLE_CODES: [&str; 10] = [
    "08", "25006", "28", "3D", "40", "53", "55", "57", "58", "XX",
];

/// Reports if a call that PostgreSQL refused with this SQLSTATE code may succeed later.
fn is_retryable(code: &str) -> bool {
    RETRYABLE_CODES.iter().any(|kind| code.starts_with(kind))
}

/// The codes of an undefined table and an undefined column.
const SCHEMA_CODES: [&str; 2] = ["42P01", "42703"];

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(|refusal| refusal.code().map(Cow::into_owned))
            .unwrap_or_default();
        let retryable = match &error {
            sqlx::Error::Database(_) => is_retryable(&code),
            // A response that violates PostgreSQL's protocol does not come from PostgreSQL.
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => true,
            _ => false,
        };
        let mut source = anyhow::Error::from(error);
        if SCHEMA_CODES.contains(&&*code) {
            source = source
                .context("the schema does not match this version of nova; run `nova migrate`");
        }
        Self { retryable, source }
    }
}

/// Converts a value to PostgreSQL's signed integer. Ids end at 2^53 − 1, so a value beyond
/// `i64` becomes `i64::MAX` and matches no row.
pub(crate) fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Converts a value from PostgreSQL. Ids, counts and times are never negative in this schema.
pub(crate) fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn to_time(at_ms: UnixMs) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(to_sql(at_ms)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

fn from_time(at: DateTime<Utc>) -> UnixMs {
    from_sql(at.timestamp_millis())
}
