//! PostgreSQL: the community's tables, for the timeline and viewer attributes, and the policy
//! registry. It is asked over connections that are made when they are first needed, so that a host
//! starts while it is down.

mod audit;
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

use super::UnixMs;
use super::breaker::Breaker;
use super::guard::{Failure, Guard};
use anyhow::Context as _;
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use std::borrow::Cow;
use std::str::FromStr as _;
use std::time::Duration;

/// The name in `degraded`, `/health` and metrics.
pub const STORE_NAME: &str = "postgres";

/// The longest any one call may take, whatever a viewer's own deadline.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Older connections are replaced, so that a pool finds its way back after a failover.
const CONNECTION_LIFE: Duration = Duration::from_secs(30 * 60);

/// Users, follows and posts; clones share their connections.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    pool: PgPool,
    guard: Guard,
}

impl PostgresStore {
    /// Nothing is connected yet. `timeout` bounds each call, here and on the server.
    ///
    /// # Errors
    /// When `url` is no PostgreSQL URL.
    pub fn new(url: &str, connections_max: u32, timeout: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            pool: pool(url, connections_max, timeout, timeout)?,
            guard: Guard::new(STORE_NAME, timeout),
        })
    }

    /// With a circuit breaker of this kind, instead of the default one.
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

    /// Connections that are open, and those of them that wait for work.
    pub fn connections(&self) -> (u32, usize) {
        (self.pool.size(), self.pool.num_idle())
    }
}

/// A pool that connects when it is first asked.
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
        .context("POSTGRES_URL: not of the form postgres://user:password@host:5432/database")?;
    Ok(options.application_name("nova"))
}

/// SQLSTATE classes after which the same call may succeed later: a connection that broke (08), a
/// transaction that lost against another (40), resources that ran out (53), a lock that was not to
/// be had (55), an operator or a timeout that intervened (57), and the server's own troubles (58, XX).
const RETRYABLE_CLASSES: [&str; 7] = ["08", "40", "53", "55", "57", "58", "XX"];

/// Undefined table and undefined column.
const SCHEMA_CODES: [&str; 2] = ["42P01", "42703"];

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(|refusal| refusal.code().map(Cow::into_owned))
            .unwrap_or_default();
        let retryable = match &error {
            sqlx::Error::Database(_) => RETRYABLE_CLASSES
                .iter()
                .any(|class| code.starts_with(class)),
            // What is not PostgreSQL's protocol does not come from PostgreSQL.
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
            source = source.context("the schema is not this nova's; run `nova migrate`");
        }
        Self { retryable, source }
    }
}

/// PostgreSQL's integers are signed. Ids end at 2^53 − 1; anything beyond `i64` matches no row.
pub(crate) fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Ids, counts and times are never negative in this schema.
pub(crate) fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn to_time(at_ms: UnixMs) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(to_sql(at_ms)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

fn from_time(at: DateTime<Utc>) -> UnixMs {
    from_sql(at.timestamp_millis())
}
