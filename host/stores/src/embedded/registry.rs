//! The policy registry in SQLite, in the same file as the data.

use super::{EmbeddedStore, audit, to_sql};
use crate::ports::registry::{Registry, RegistryError};
use anyhow::Context;
use async_trait::async_trait;
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::registry::{Change, PublishedPolicy, RegistryState, put_stage};
use nova_support::clock::unix_ms;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, SqliteConnection, SqlitePool, Transaction};

/// The registry's tables in the embedded store's file.
#[derive(Debug, Clone)]
pub struct SqliteRegistry {
    reader: SqlitePool,
    writer: SqlitePool,
}

impl SqliteRegistry {
    /// # Errors
    /// If the tables cannot be created.
    pub async fn open(store: &EmbeddedStore) -> anyhow::Result<Self> {
        let (reader, writer) = (store.reader().clone(), store.writer().clone());
        sqlx::raw_sql(include_str!("registry.sql"))
            .execute(&writer)
            .await
            .context("could not create the tables of the policy registry")?;
        audit::prepare(&writer)
            .await
            .context("could not prepare the audit log")?;
        Ok(Self { reader, writer })
    }
}

pub(super) fn unavailable(error: sqlx::Error) -> RegistryError {
    RegistryError::Unavailable(error.into())
}

pub(super) fn corrupt(error: impl std::fmt::Display) -> RegistryError {
    RegistryError::Unavailable(anyhow::anyhow!(
        "could not decode a row of the policy registry: {error}"
    ))
}

#[async_trait]
impl Registry for SqliteRegistry {
    async fn load(&self) -> Result<RegistryState, RegistryError> {
        // One read transaction, because all parts must belong to one revision.
        let mut tx = self.reader.begin().await.map_err(unavailable)?;
        let revision = revision(&mut tx).await?;
        let mut state = RegistryState {
            revision,
            ..RegistryState::default()
        };
        let rows = sqlx::query(
            "SELECT digest, spec, published_at_ms FROM policies ORDER BY published_at_ms, name, version",
        );
        for row in rows.fetch_all(&mut *tx).await.map_err(unavailable)? {
            state.policies.push(PublishedPolicy {
                spec: serde_json::from_str(row.get("spec")).map_err(corrupt)?,
                digest: row.get::<&str, _>("digest").parse().map_err(corrupt)?,
                published_at_ms: row.get::<i64, _>("published_at_ms") as u64,
            });
        }
        for row in fetch(&mut tx, "SELECT policy FROM policy_activations ORDER BY id").await? {
            state
                .activations
                .push(row.get::<&str, _>(0).parse().map_err(corrupt)?);
        }
        for row in fetch(&mut tx, "SELECT policy, stage, percent FROM policy_stages").await? {
            let policy = row.get::<&str, _>(0).parse().map_err(corrupt)?;
            put_stage(&mut state, policy, row.get(1), row.get(2)).map_err(corrupt)?;
        }
        for row in fetch(&mut tx, "SELECT digest, body FROM policy_quarantine").await? {
            state.quarantined.insert(
                row.get::<&str, _>(0).parse().map_err(corrupt)?,
                serde_json::from_str(row.get(1)).map_err(corrupt)?,
            );
        }
        for row in fetch(&mut tx, "SELECT key, body FROM experiments").await? {
            state.experiments.insert(
                row.get(0),
                serde_json::from_str(row.get(1)).map_err(corrupt)?,
            );
        }
        for row in fetch(&mut tx, "SELECT key, rule FROM cohorts").await? {
            state.cohorts.insert(
                row.get(0),
                serde_json::from_str(row.get(1)).map_err(corrupt)?,
            );
        }
        for row in fetch(&mut tx, "SELECT name, enabled FROM flags").await? {
            state.flags.insert(row.get(0), row.get(1));
        }
        Ok(state)
    }

    async fn revision(&self) -> Result<i64, RegistryError> {
        revision(&mut *self.reader.acquire().await.map_err(unavailable)?).await
    }

    async fn apply(
        &self,
        change: &Change,
        actor: &str,
        expected_revision: i64,
    ) -> Result<i64, RegistryError> {
        // IMMEDIATE: two processes that decide on the same revision must not both write.
        let mut tx = self
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(unavailable)?;
        if revision(&mut tx).await? != expected_revision {
            return Err(RegistryError::Conflict(
                "the registry was changed in the meantime; read its state again and repeat the request".into(),
            ));
        }
        write(&mut tx, change).await?;
        let revision = expected_revision + 1;
        let previous = audit::head(&mut tx).await?;
        let entry =
            AuditEntry::of(change, actor, revision, unix_ms(), previous).map_err(corrupt)?;
        audit::append(&mut tx, &entry).await?;
        tx.commit().await.map_err(unavailable)?;
        Ok(revision)
    }

    async fn module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        sqlx::query_scalar("SELECT bytes FROM policy_modules WHERE digest = ?")
            .bind(digest.to_string())
            .fetch_optional(&self.reader)
            .await
            .map_err(unavailable)
    }

    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        let mut reader = self.reader.acquire().await.map_err(unavailable)?;
        audit::read(&mut reader, page, limit.into()).await
    }
}

async fn revision(connection: &mut SqliteConnection) -> Result<i64, RegistryError> {
    sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM audit")
        .fetch_one(connection)
        .await
        .map_err(unavailable)
}

async fn fetch(
    tx: &mut Transaction<'_, Sqlite>,
    sql: &'static str,
) -> Result<Vec<SqliteRow>, RegistryError> {
    sqlx::query(sql)
        .fetch_all(&mut **tx)
        .await
        .map_err(unavailable)
}

async fn write(tx: &mut Transaction<'_, Sqlite>, change: &Change) -> Result<(), RegistryError> {
    match change {
        Change::Publish {
            spec,
            digest,
            modules,
            at_ms,
            ..
        } => {
            for (digest, bytes) in modules {
                let insert = sqlx::query(
                    "INSERT OR IGNORE INTO policy_modules (digest, bytes) VALUES (?, ?)",
                );
                run(tx, insert.bind(digest.to_string()).bind(bytes.as_slice())).await?;
            }
            let insert = "INSERT INTO policies (name, version, digest, spec, published_at_ms) VALUES (?, ?, ?, ?, ?)";
            let PolicyRef { name, version } = &spec.policy;
            let query = sqlx::query(insert)
                .bind(name)
                .bind(version.to_string())
                .bind(digest.to_string())
                .bind(serde_json::to_string(spec).map_err(corrupt)?)
                .bind(to_sql(*at_ms));
            run(tx, query).await
        }
        Change::Activate { policy } => {
            end_trial(tx, policy).await?;
            run(
                tx,
                sqlx::query("INSERT INTO policy_activations (policy) VALUES (?)")
                    .bind(policy.to_string()),
            )
            .await
        }
        Change::Rollback { to, .. } => {
            end_trial(tx, to).await?;
            // Deletes every activation above the target's last one. The ones in between are of
            // quarantined policies.
            let delete = "DELETE FROM policy_activations WHERE id > \
                 (SELECT max(id) FROM policy_activations WHERE policy = ? AND id < (SELECT max(id) FROM policy_activations))";
            run(tx, sqlx::query(delete).bind(to.to_string())).await
        }
        Change::Shadow { policy } => write_stage(tx, policy, "shadow", None).await,
        Change::Retire { policy } => write_stage(tx, policy, "retired", None).await,
        Change::Canary { policy, percent } if *percent > 0.0 => {
            run(
                tx,
                sqlx::query("DELETE FROM policy_stages WHERE stage = 'canary'"),
            )
            .await?;
            write_stage(tx, policy, "canary", Some(*percent)).await
        }
        Change::Canary { policy, .. } => end_trial(tx, policy).await,
        Change::Quarantine { digest, quarantine } => {
            let end_trials = "DELETE FROM policy_stages WHERE stage <> 'retired' AND policy IN \
                 (SELECT name || '@' || version FROM policies WHERE digest = ?)";
            run(tx, sqlx::query(end_trials).bind(digest.to_string())).await?;
            let body = serde_json::to_string(quarantine).map_err(corrupt)?;
            let insert = "INSERT OR IGNORE INTO policy_quarantine (digest, body) VALUES (?, ?)";
            run(tx, sqlx::query(insert).bind(digest.to_string()).bind(body)).await
        }
        Change::PutExperiment { key, experiment } => {
            let body = serde_json::to_string(experiment).map_err(corrupt)?;
            run(
                tx,
                sqlx::query("INSERT OR REPLACE INTO experiments (key, body) VALUES (?, ?)")
                    .bind(key)
                    .bind(body),
            )
            .await
        }
        Change::PutCohort { key, rule } => {
            let rule = serde_json::to_string(rule).map_err(corrupt)?;
            run(
                tx,
                sqlx::query("INSERT OR REPLACE INTO cohorts (key, rule) VALUES (?, ?)")
                    .bind(key)
                    .bind(rule),
            )
            .await
        }
        Change::SetFlag { name, enabled } => {
            let query = sqlx::query("INSERT OR REPLACE INTO flags (name, enabled) VALUES (?, ?)");
            run(tx, query.bind(name).bind(enabled)).await
        }
        Change::Reconciled { change, .. } => Box::pin(write(tx, change)).await,
        Change::Dropped { .. } => Ok(()),
    }
}

async fn end_trial(
    tx: &mut Transaction<'_, Sqlite>,
    policy: &PolicyRef,
) -> Result<(), RegistryError> {
    let delete = "DELETE FROM policy_stages WHERE policy = ? AND stage <> 'retired'";
    run(tx, sqlx::query(delete).bind(policy.to_string())).await
}

async fn write_stage(
    tx: &mut Transaction<'_, Sqlite>,
    policy: &PolicyRef,
    stage: &'static str,
    percent: Option<f64>,
) -> Result<(), RegistryError> {
    let put = "INSERT OR REPLACE INTO policy_stages (policy, stage, percent) VALUES (?, ?, ?)";
    let put = sqlx::query(put).bind(policy.to_string());
    run(tx, put.bind(stage).bind(percent)).await
}

async fn run(
    tx: &mut Transaction<'_, Sqlite>,
    query: sqlx::query::Query<'_, Sqlite, sqlx::sqlite::SqliteArguments>,
) -> Result<(), RegistryError> {
    query
        .execute(&mut **tx)
        .await
        .map(|_| ())
        .map_err(unavailable)
}
