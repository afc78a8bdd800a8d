//! The policy registry in PostgreSQL, shared by all hosts. A change, its audit entry and the
//! new revision are one transaction. A lock on the revision's row puts the transactions in
//! order. Each commit notifies every host that listens.

use super::{audit, connect_options, pool, to_sql};
use crate::breaker::Breaker;
use crate::guard::{Failure, Guard};
use crate::ports::StoreError;
use crate::ports::registry::{Registry, RegistryError};
use crate::registry::{self, Applied, Transaction, Write};
use crate::registry_read::{Known, Only, Reader};
use async_trait::async_trait;
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::audit_head::AuditHead;
use nova_model::audit_key::AuditKeys;
use nova_model::experiments::cohort::Rule;
use nova_model::prune::StoredModule;
use nova_model::quarantine::{Lift, Quarantine, Withdrawal};
use nova_model::registry::{Change, Experiment, PublishedPolicy, RegistryState};
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
/// Label of the modules' circuit breaker. A module that cannot be read says nothing about the
/// registry's small requests.
const MODULES_CIRCUIT: &str = "registry_modules";
const CHANNEL: &str = "nova_registry";

/// Maximum connections. Changes are made one at a time, so a host needs one connection to read
/// and one to change.
const CONNECTIONS_MAX: u32 = 2;
/// Maximum connections that transfer modules. They are others than the ones above, because a
/// transfer takes seconds on a slow network, and a rollback on another host must be read meanwhile.
const MODULE_CONNECTIONS_MAX: u32 = 4;
/// Timeout of small requests. A starting host waits this long, and so does an operator before a
/// 503.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of requests with modules. A policy in another language has twenty megabytes, and the
/// network may be slow.
const MODULES_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that the circuit stays open. A host that asks once a second is no load for a recovering
/// server, and a rollback must not be delayed by a breaker.
const CIRCUIT_OPEN: Duration = Duration::from_secs(1);
/// Time for which a host counts as present after it was last seen. Hosts note their presence
/// several times within it.
const PRESENT_FOR: Duration = Duration::from_secs(60);
/// Pause between attempts to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct PostgresRegistry {
    pool: PgPool,
    guard: Guard,
    modules_pool: PgPool,
    modules_guard: Guard,
    keys: AuditKeys,
    known: Known,
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
        Ok(Self {
            pool: pool(url, CONNECTIONS_MAX, TIMEOUT, TIMEOUT)?,
            guard: Guard::with_breaker(STORE_NAME, TIMEOUT, Breaker::new(CIRCUIT_OPEN)),
            modules_pool: pool(
                url,
                MODULE_CONNECTIONS_MAX,
                MODULES_TIMEOUT,
                MODULES_TIMEOUT,
            )?,
            modules_guard: Guard::for_some(
                STORE_NAME,
                MODULES_CIRCUIT,
                MODULES_TIMEOUT,
                Breaker::new(CIRCUIT_OPEN),
            ),
            keys: AuditKeys::default(),
            known: Known::default(),
            _listener: AbortOnDropHandle::new(tokio::spawn(listen(listening, changes.clone()))),
            changes,
        })
    }

    /// Authenticates new entries of the audit log.
    #[must_use]
    pub fn with_audit_keys(self, keys: AuditKeys) -> Self {
        Self { keys, ..self }
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

/// Converts the failure of a guarded call. The guard knows if a repetition may help.
fn failed(error: StoreError) -> RegistryError {
    match error.retryable {
        true => RegistryError::Unavailable(error.into()),
        false => RegistryError::Refused(error.into()),
    }
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
            self.known.load(&mut *tx).await
        };
        self.guard.run("load", load).await.map_err(failed)
    }

    async fn head(&self) -> Result<AuditHead, RegistryError> {
        let read = async { head(&mut *self.pool.acquire().await?).await };
        self.guard.run("revision", read).await.map_err(failed)
    }

    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        expected_revision: i64,
    ) -> Result<i64, RegistryError> {
        let apply = async {
            let mut tx = self.pool.begin().await?;
            let applied =
                registry::apply(&mut *tx, change, actor, expected_revision, &self.keys).await?;
            if let Applied::At(_) = applied {
                tx.commit().await?;
            }
            Ok(applied)
        };
        let applied = self.guard.run("apply", apply).await.map_err(failed)?;
        applied.revision()
    }

    async fn store_module(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let store = async {
            let connection = &mut *self.modules_pool.acquire().await?;
            let is_intact = "SELECT sha256(bytes) = $2 FROM policy_modules WHERE digest = $1";
            let is_intact = sqlx::query_scalar(is_intact)
                .bind(digest.to_string())
                .bind(digest.as_bytes().as_slice());
            if is_intact.fetch_optional(&mut *connection).await? == Some(true) {
                return Ok(());
            }
            // Damaged bytes are replaced.
            let insert = "INSERT INTO policy_modules (digest, bytes) VALUES ($1, $2) \
                 ON CONFLICT (digest) DO UPDATE SET bytes = excluded.bytes";
            let insert = sqlx::query(insert).bind(digest.to_string()).bind(bytes);
            insert.execute(connection).await?;
            Ok(())
        };
        let stored = self.modules_guard.run("store_module", store).await;
        stored.map_err(failed)
    }

    async fn stored_module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        let read = async {
            let find = sqlx::query_scalar("SELECT bytes FROM policy_modules WHERE digest = $1")
                .bind(digest.to_string());
            Ok(find.fetch_optional(&self.modules_pool).await?)
        };
        self.modules_guard.run("module", read).await.map_err(failed)
    }

    async fn stored_modules(&self) -> Result<Vec<StoredModule>, RegistryError> {
        let read = async {
            let all = "SELECT digest, octet_length(bytes)::bigint FROM policy_modules";
            let rows: Vec<(String, i64)> =
                sqlx::query_as(all).fetch_all(&self.modules_pool).await?;
            let module = |(digest, bytes): (String, i64)| {
                Ok(StoredModule {
                    digest: digest.parse().map_err(corrupt)?,
                    bytes: bytes.unsigned_abs(),
                })
            };
            rows.into_iter().map(module).collect()
        };
        let read = self.modules_guard.run("stored_modules", read).await;
        read.map_err(failed)
    }

    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        let read =
            async { audit::read(&mut *self.pool.acquire().await?, page, limit.into()).await };
        self.guard.run("audit", read).await.map_err(failed)
    }

    async fn present_hosts(&self, host: &str) -> Result<u64, RegistryError> {
        let note = async {
            let present = present_hosts(&mut *self.pool.acquire().await?, host).await?;
            Ok(u64::try_from(present).unwrap_or_default())
        };
        let noted = self.guard.run("present_hosts", note).await;
        noted.map_err(failed)
    }

    async fn changed(&self) {
        self.changes.notified().await;
    }
}

async fn head(connection: &mut PgConnection) -> Result<AuditHead, Failure> {
    let find = "SELECT revision, (SELECT hash FROM audit WHERE audit.id = revision) \
         FROM registry_revision WHERE registry_revision.id = 1";
    let row: (i64, Option<String>) = sqlx::query_as(find).fetch_one(connection).await?;
    let hash = row.1.as_deref().map(str::parse).transpose();
    Ok(AuditHead {
        revision: row.0,
        hash: hash.map_err(corrupt)?,
    })
}

#[async_trait]
impl Reader for PgConnection {
    type Error = Failure;

    async fn head(&mut self) -> Result<AuditHead, Failure> {
        head(self).await
    }

    async fn entry_hash(&mut self, id: i64) -> Result<Option<Digest>, Failure> {
        let find = sqlx::query_scalar("SELECT hash FROM audit WHERE id = $1").bind(id);
        let found: Option<Option<String>> = find.fetch_optional(self).await?;
        let hash = found.flatten().as_deref().map(str::parse).transpose();
        hash.map_err(corrupt)
    }

    async fn changes_after(
        &mut self,
        id: i64,
        limit: i64,
    ) -> Result<Vec<(String, String)>, Failure> {
        let find = "SELECT action, subject FROM audit WHERE id > $1 ORDER BY id LIMIT $2";
        let find = sqlx::query_as(find).bind(id).bind(limit);
        Ok(find.fetch_all(self).await?)
    }

    async fn policies(
        &mut self,
        only: Only<'_, PolicyRef>,
    ) -> Result<Vec<PublishedPolicy>, Failure> {
        let rows: Vec<(String, String, i64)> = match only {
            None => {
                let all = "SELECT digest, spec::text, published_at_ms FROM policies \
                     ORDER BY published_at_ms, name, version";
                sqlx::query_as(all).fetch_all(self).await?
            }
            Some(only) => {
                let some = "SELECT digest, spec::text, published_at_ms FROM policies \
                     JOIN unnest($1::text[], $2::text[]) AS wanted (name, version) USING (name, version)";
                let names: Vec<&str> = only.iter().map(|policy| policy.name.as_str()).collect();
                let versions = only.iter().map(|policy| policy.version.to_string());
                let versions: Vec<String> = versions.collect();
                let some = sqlx::query_as(some).bind(names).bind(versions);
                some.fetch_all(self).await?
            }
        };
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

    async fn activations(&mut self) -> Result<Vec<PolicyRef>, Failure> {
        let all = sqlx::query_scalar("SELECT policy FROM policy_activations ORDER BY id");
        let rows: Vec<String> = all.fetch_all(self).await?;
        rows.iter()
            .map(|policy| policy.parse().map_err(corrupt))
            .collect()
    }

    async fn stages(&mut self) -> Result<Vec<(String, String, Option<f64>)>, Failure> {
        let all = sqlx::query_as("SELECT policy, stage, percent FROM policy_stages");
        Ok(all.fetch_all(self).await?)
    }

    async fn quarantined(&mut self) -> Result<BTreeMap<Digest, Quarantine>, Failure> {
        by_digest(self, "SELECT digest, body::text FROM policy_quarantine").await
    }

    async fn lifts(&mut self) -> Result<BTreeMap<Digest, Lift>, Failure> {
        by_digest(self, "SELECT digest, body::text FROM policy_lifts").await
    }

    async fn withdrawals(
        &mut self,
    ) -> Result<BTreeMap<Digest, BTreeMap<String, Withdrawal>>, Failure> {
        let all = sqlx::query_as("SELECT digest, host, body::text FROM policy_withdrawals");
        let rows: Vec<(String, String, String)> = all.fetch_all(self).await?;
        let mut withdrawals = BTreeMap::<Digest, BTreeMap<_, _>>::new();
        for (digest, host, body) in rows {
            let by_host = withdrawals.entry(digest.parse().map_err(corrupt)?);
            by_host.or_default().insert(host, parse(&body)?);
        }
        Ok(withdrawals)
    }

    async fn experiments(
        &mut self,
        only: Only<'_, String>,
    ) -> Result<BTreeMap<String, Experiment>, Failure> {
        let rows =
            "SELECT key, body::text FROM experiments WHERE $1::text[] IS NULL OR key = ANY($1)";
        by_key(self, rows, only).await
    }

    async fn cohorts(&mut self, only: Only<'_, String>) -> Result<BTreeMap<String, Rule>, Failure> {
        let rows = "SELECT key, rule::text FROM cohorts WHERE $1::text[] IS NULL OR key = ANY($1)";
        by_key(self, rows, only).await
    }

    async fn flags(&mut self) -> Result<BTreeMap<String, bool>, Failure> {
        let all = sqlx::query_as("SELECT name, enabled FROM flags");
        let rows: Vec<(String, bool)> = all.fetch_all(self).await?;
        Ok(rows.into_iter().collect())
    }

    fn unreadable(reason: String) -> Failure {
        corrupt(reason)
    }
}

async fn by_digest<T: DeserializeOwned>(
    connection: &mut PgConnection,
    rows: &'static str,
) -> Result<BTreeMap<Digest, T>, Failure> {
    let rows: Vec<(String, String)> = sqlx::query_as(rows).fetch_all(connection).await?;
    rows.into_iter()
        .map(|(digest, body)| Ok((digest.parse().map_err(corrupt)?, parse(&body)?)))
        .collect()
}

/// Notes that a host is present and returns the number of hosts that were seen lately, by the
/// server's clock. Also forgets hosts that are long gone.
async fn present_hosts(connection: &mut PgConnection, host: &str) -> Result<i64, sqlx::Error> {
    sqlx::query(
        "INSERT INTO registry_hosts (host, seen_at) VALUES ($1, now()) \
         ON CONFLICT (host) DO UPDATE SET seen_at = excluded.seen_at",
    )
    .bind(host)
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM registry_hosts WHERE seen_at < now() - interval '1 day'")
        .execute(&mut *connection)
        .await?;
    sqlx::query_scalar("SELECT count(*) FROM registry_hosts WHERE seen_at > now() - $1::interval")
        .bind(format!("{} seconds", PRESENT_FOR.as_secs()))
        .fetch_one(connection)
        .await
}

async fn by_key<T: DeserializeOwned>(
    connection: &mut PgConnection,
    rows: &'static str,
    only: Only<'_, String>,
) -> Result<BTreeMap<String, T>, Failure> {
    let keys: Option<Vec<&String>> = only.map(|only| only.iter().collect());
    let rows = sqlx::query_as(rows).bind(keys);
    let rows: Vec<(String, String)> = rows.fetch_all(connection).await?;
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
            Write::EndQuarantine(digest) => {
                sqlx::query("DELETE FROM policy_quarantine WHERE digest = $1")
                    .bind(digest.to_string())
            }
            Write::Withdrawal { digest, host, body } => sqlx::query(
                "INSERT INTO policy_withdrawals (digest, host, body) VALUES ($1, $2, $3::json) ON CONFLICT DO NOTHING",
            )
            .bind(digest.to_string())
            .bind(host)
            .bind(body),
            Write::EndWithdrawals(digest) => {
                sqlx::query("DELETE FROM policy_withdrawals WHERE digest = $1")
                    .bind(digest.to_string())
            }
            Write::Lift { digest, body } => sqlx::query(
                "INSERT INTO policy_lifts (digest, body) VALUES ($1, $2::json) ON CONFLICT (digest) DO UPDATE SET body = excluded.body",
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
            Write::RemovePolicy(policy) => {
                sqlx::query("DELETE FROM policies WHERE name = $1 AND version = $2")
                    .bind(&policy.name)
                    .bind(policy.version.to_string())
            }
            Write::RemoveActivations(policy) => {
                sqlx::query("DELETE FROM policy_activations WHERE policy = $1")
                    .bind(policy.to_string())
            }
            Write::RemoveModule(digest) => {
                sqlx::query("DELETE FROM policy_modules WHERE digest = $1").bind(digest.to_string())
            }
        };
        query.execute(self).await?;
        Ok(())
    }

    async fn has_module(&mut self, digest: Digest) -> Result<bool, Failure> {
        let find = "SELECT EXISTS (SELECT 1 FROM policy_modules WHERE digest = $1)";
        let find = sqlx::query_scalar(find).bind(digest.to_string());
        Ok(find.fetch_one(self).await?)
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
