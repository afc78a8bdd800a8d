//! The policy registry in PostgreSQL, shared by all hosts. A change, its audit entry and the
//! new revision are one transaction. A lock on the revision's row puts the transactions in
//! order. Each commit notifies every host that listens.

use super::{audit, connect_options, pool, to_sql};
use crate::breaker::Breaker;
use crate::guard::{Failure, Guard};
use crate::ports::StoreError;
use crate::ports::registry::{Registry, RegistryError};
use crate::registry::{self, Transaction, Write};
use async_trait::async_trait;
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::quarantine::Quarantine;
use nova_model::registry::{Change, PublishedPolicy, RegistryState, put_stage};
use nova_model::time::UnixMs;
use serde::de::DeserializeOwned;
use sqlx::PgConnection;
use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// Label in metrics. The registry and the timeline share the server, but have separate
/// connections and circuit breakers.
const STORE_NAME: &str = "registry";
const CHANNEL: &str = "nova_registry";

/// Maximum connections. Changes are made one at a time, so a host needs one connection to read
/// and one to change.
const CONNECTIONS_MAX: u32 = 2;
/// Timeout of small requests. A starting host waits this long, and so does an operator before a
/// 503.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of requests with modules. A policy in another language has twenty megabytes, and the
/// network may be slow.
const MODULES_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that the circuit stays open. A host that asks once a second is no load for a recovering
/// server, and a rollback must not be delayed by a breaker.
const CIRCUIT_OPEN: Duration = Duration::from_secs(1);
/// Pause between attempts to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct PostgresRegistry {
    pool: PgPool,
    guard: Guard,
    modules_guard: Guard,
    changes: Arc<Notify>,
    _listener: AbortOnDropHandle<()>,
}

impl PostgresRegistry {
    /// Creates the registry without connecting. It must be called within a runtime, because it
    /// listens in the background.
    ///
    /// # Errors
    /// If `url` is not a PostgreSQL URL.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let changes = Arc::new(Notify::new());
        // The listener has its own pool, because it keeps its connection for ever.
        let listening = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(connect_options(url)?);
        let guard = Guard::with_breaker(STORE_NAME, TIMEOUT, Breaker::new(CIRCUIT_OPEN));
        Ok(Self {
            pool: pool(url, CONNECTIONS_MAX, TIMEOUT, MODULES_TIMEOUT)?,
            modules_guard: guard.with_timeout(MODULES_TIMEOUT),
            guard,
            _listener: AbortOnDropHandle::new(tokio::spawn(listen(listening, changes.clone()))),
            changes,
        })
    }
}

/// Signals a change after every notification and after every new connection, because changes
/// made before the connection were not received.
async fn listen(pool: PgPool, changes: Arc<Notify>) {
    loop {
        if let Err(error) = listen_once(&pool, &changes).await {
            tracing::debug!(%error, "could not listen for the registry's notifications; polling the registry until listening works again");
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

async fn listen_once(pool: &PgPool, changes: &Notify) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    changes.notify_one();
    while listener.try_recv().await?.is_some() {
        changes.notify_one();
    }
    Ok(())
}

fn unavailable(error: StoreError) -> RegistryError {
    RegistryError::Unavailable(error.into())
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T, Failure> {
    serde_json::from_str(json).map_err(corrupt)
}

fn corrupt(error: impl std::fmt::Display) -> Failure {
    Failure::permanent(anyhow::anyhow!(
        "could not decode a row of the policy registry: {error}"
    ))
}

#[async_trait]
impl Registry for PostgresRegistry {
    async fn load(&self) -> Result<RegistryState, RegistryError> {
        let load = async {
            // One snapshot, because all parts must belong to one revision.
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
            let mut tx = self.pool.begin_with(begin).await?;
            let mut state = RegistryState {
                revision: revision(&mut tx).await?,
                policies: policies(&mut tx).await?,
                activations: activations(&mut tx).await?,
                experiments: by_key(&mut tx, "SELECT key, body::text FROM experiments").await?,
                cohorts: by_key(&mut tx, "SELECT key, rule::text FROM cohorts").await?,
                flags: sqlx::query_as("SELECT name, enabled FROM flags")
                    .fetch_all(&mut *tx)
                    .await?
                    .into_iter()
                    .collect(),
                quarantined: quarantined(&mut tx).await?,
                ..RegistryState::default()
            };
            stages(&mut tx, &mut state).await?;
            Ok(state)
        };
        self.guard.run("load", load).await.map_err(unavailable)
    }

    async fn revision(&self) -> Result<i64, RegistryError> {
        let read = async { Ok(revision(&mut *self.pool.acquire().await?).await?) };
        self.guard.run("revision", read).await.map_err(unavailable)
    }

    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        expected_revision: i64,
    ) -> Result<i64, RegistryError> {
        let apply = async {
            let mut tx = self.pool.begin().await?;
            let applied = registry::apply(&mut *tx, change, actor, expected_revision).await?;
            if applied.is_some() {
                tx.commit().await?;
            }
            Ok(applied)
        };
        let guard = match change {
            Change::Publish { .. } => &self.modules_guard,
            _ => &self.guard,
        };
        let applied = guard.run("apply", apply).await.map_err(unavailable)?;
        applied.ok_or_else(registry::outdated)
    }

    async fn module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        let read = async {
            let find = sqlx::query_scalar("SELECT bytes FROM policy_modules WHERE digest = $1")
                .bind(digest.to_string());
            Ok(find.fetch_optional(&self.pool).await?)
        };
        self.modules_guard
            .run("module", read)
            .await
            .map_err(unavailable)
    }

    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        let read =
            async { audit::read(&mut *self.pool.acquire().await?, page, limit.into()).await };
        self.guard.run("audit", read).await.map_err(unavailable)
    }

    async fn changed(&self) {
        self.changes.notified().await;
    }
}

async fn revision(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT revision FROM registry_revision WHERE id = 1")
        .fetch_one(connection)
        .await
}

async fn policies(connection: &mut PgConnection) -> Result<Vec<PublishedPolicy>, Failure> {
    let all = "SELECT digest, spec::text, published_at_ms FROM policies ORDER BY published_at_ms, name, version";
    let rows: Vec<(String, String, i64)> = sqlx::query_as(all).fetch_all(connection).await?;
    rows.into_iter()
        .map(|(digest, spec, published_at_ms)| {
            Ok(PublishedPolicy {
                spec: parse(&spec)?,
                digest: digest.parse().map_err(corrupt)?,
                published_at_ms: UnixMs::try_from(published_at_ms).map_err(corrupt)?,
            })
        })
        .collect()
}

async fn activations(connection: &mut PgConnection) -> Result<Vec<PolicyRef>, Failure> {
    let rows: Vec<String> = sqlx::query_scalar("SELECT policy FROM policy_activations ORDER BY id")
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|policy| policy.parse().map_err(corrupt))
        .collect()
}

async fn stages(connection: &mut PgConnection, state: &mut RegistryState) -> Result<(), Failure> {
    let all = "SELECT policy, stage, percent FROM policy_stages";
    let rows: Vec<(String, String, Option<f64>)> =
        sqlx::query_as(all).fetch_all(connection).await?;
    for (policy, stage, percent) in rows {
        put_stage(state, &policy, &stage, percent).map_err(corrupt)?;
    }
    Ok(())
}

async fn quarantined(
    connection: &mut PgConnection,
) -> Result<BTreeMap<Digest, Quarantine>, Failure> {
    let all = "SELECT digest, body::text FROM policy_quarantine";
    let rows: Vec<(String, String)> = sqlx::query_as(all).fetch_all(connection).await?;
    rows.into_iter()
        .map(|(digest, body)| Ok((digest.parse().map_err(corrupt)?, parse(&body)?)))
        .collect()
}

async fn by_key<T: DeserializeOwned>(
    connection: &mut PgConnection,
    rows: &'static str,
) -> Result<BTreeMap<String, T>, Failure> {
    let rows: Vec<(String, String)> = sqlx::query_as(rows).fetch_all(connection).await?;
    rows.into_iter()
        .map(|(key, json)| Ok((key, parse(&json)?)))
        .collect()
}

#[async_trait]
impl Transaction for PgConnection {
    type Error = Failure;

    async fn locked_revision(&mut self) -> Result<i64, Failure> {
        // A second change waits here for the commit of the first, and then sees its revision.
        let lock = "SELECT revision FROM registry_revision WHERE id = 1 FOR UPDATE";
        Ok(sqlx::query_scalar(lock).fetch_one(self).await?)
    }

    async fn write(&mut self, write: Write<'_>) -> Result<(), Failure> {
        let query = match write {
            Write::Module { digest, bytes } => sqlx::query(
                "INSERT INTO policy_modules (digest, bytes) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            )
            .bind(digest.to_string())
            .bind(bytes),
            Write::Policy {
                policy,
                digest,
                spec,
                at_ms,
            } => sqlx::query("INSERT INTO policies (name, version, digest, spec, published_at_ms) VALUES ($1, $2, $3, $4::json, $5)")
                .bind(&policy.name)
                .bind(policy.version.to_string())
                .bind(digest.to_string())
                .bind(spec)
                .bind(to_sql(at_ms)),
            Write::Activation(policy) => {
                sqlx::query("INSERT INTO policy_activations (policy) VALUES ($1)")
                    .bind(policy.to_string())
            }
            Write::Rollback(policy) => sqlx::query(
                "DELETE FROM policy_activations WHERE id > \
                 (SELECT max(id) FROM policy_activations WHERE policy = $1 AND id < (SELECT max(id) FROM policy_activations))",
            )
            .bind(policy.to_string()),
            Write::Stage {
                policy,
                stage,
                percent,
            } => sqlx::query(
                "INSERT INTO policy_stages (policy, stage, percent) VALUES ($1, $2, $3) \
                 ON CONFLICT (policy) DO UPDATE SET stage = excluded.stage, percent = excluded.percent",
            )
            .bind(policy.to_string())
            .bind(stage.as_str())
            .bind(percent),
            Write::EndTrial(policy) => {
                sqlx::query("DELETE FROM policy_stages WHERE policy = $1 AND stage <> 'retired'")
                    .bind(policy.to_string())
            }
            Write::EndTrialsOf(digest) => sqlx::query(
                "DELETE FROM policy_stages WHERE stage <> 'retired' AND policy IN \
                 (SELECT name || '@' || version FROM policies WHERE digest = $1)",
            )
            .bind(digest.to_string()),
            Write::EndCanary => sqlx::query("DELETE FROM policy_stages WHERE stage = 'canary'"),
            Write::Quarantine { digest, body } => sqlx::query(
                "INSERT INTO policy_quarantine (digest, body) VALUES ($1, $2::json) ON CONFLICT DO NOTHING",
            )
            .bind(digest.to_string())
            .bind(body),
            Write::Experiment { key, body } => sqlx::query(
                "INSERT INTO experiments (key, body) VALUES ($1, $2::json) ON CONFLICT (key) DO UPDATE SET body = excluded.body",
            )
            .bind(key)
            .bind(body),
            Write::Cohort { key, rule } => sqlx::query(
                "INSERT INTO cohorts (key, rule) VALUES ($1, $2::json) ON CONFLICT (key) DO UPDATE SET rule = excluded.rule",
            )
            .bind(key)
            .bind(rule),
            Write::Flag { name, enabled } => sqlx::query(
                "INSERT INTO flags (name, enabled) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET enabled = excluded.enabled",
            )
            .bind(name)
            .bind(enabled),
        };
        query.execute(self).await?;
        Ok(())
    }

    async fn audit(&mut self, page: AuditPage, limit: i64) -> Result<Vec<AuditEntry>, Failure> {
        audit::read(self, page, limit).await
    }

    async fn append(&mut self, entry: &AuditEntry) -> Result<(), Failure> {
        audit::append(self, entry).await?;
        let advance = "UPDATE registry_revision SET revision = $1 WHERE id = 1";
        sqlx::query(advance).bind(entry.id).execute(self).await?;
        Ok(())
    }

    fn corrupt(error: serde_json::Error) -> Failure {
        corrupt(error)
    }
}
