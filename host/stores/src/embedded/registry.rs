//! The policy registry in SQLite, in the same file as the data.

use super::audit::{self, corrupt, unavailable};
use super::{EmbeddedStore, to_sql};
use crate::ports::registry::{Registry, RegistryError};
use crate::registry::{Transaction, Write, apply, outdated};
use anyhow::Context;
use async_trait::async_trait;
use nova_model::artifact::Digest;
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::registry::{Change, PublishedPolicy, RegistryState, put_stage};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection, SqlitePool};

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
            put_stage(&mut state, row.get(0), row.get(1), row.get(2)).map_err(corrupt)?;
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
        let applied = apply(&mut *tx, change, actor, expected_revision).await?;
        let revision = applied.ok_or_else(outdated)?;
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
    connection: &mut SqliteConnection,
    sql: &'static str,
) -> Result<Vec<SqliteRow>, RegistryError> {
    sqlx::query(sql)
        .fetch_all(connection)
        .await
        .map_err(unavailable)
}

#[async_trait]
impl Transaction for SqliteConnection {
    type Error = RegistryError;

    async fn locked_revision(&mut self) -> Result<i64, RegistryError> {
        // `BEGIN IMMEDIATE` took the lock.
        revision(self).await
    }

    async fn write(&mut self, write: Write<'_>) -> Result<(), RegistryError> {
        let query = match write {
            Write::Module { digest, bytes } => {
                sqlx::query("INSERT OR IGNORE INTO policy_modules (digest, bytes) VALUES (?, ?)")
                    .bind(digest.to_string())
                    .bind(bytes)
            }
            Write::Policy {
                policy,
                digest,
                spec,
                at_ms,
            } => sqlx::query("INSERT INTO policies (name, version, digest, spec, published_at_ms) VALUES (?, ?, ?, ?, ?)")
                .bind(&policy.name)
                .bind(policy.version.to_string())
                .bind(digest.to_string())
                .bind(spec)
                .bind(to_sql(at_ms)),
            Write::Activation(policy) => {
                sqlx::query("INSERT INTO policy_activations (policy) VALUES (?)")
                    .bind(policy.to_string())
            }
            Write::Rollback(policy) => sqlx::query(
                "DELETE FROM policy_activations WHERE id > \
                 (SELECT max(id) FROM policy_activations WHERE policy = ? AND id < (SELECT max(id) FROM policy_activations))",
            )
            .bind(policy.to_string()),
            Write::Stage {
                policy,
                stage,
                percent,
            } => sqlx::query(
                "INSERT OR REPLACE INTO policy_stages (policy, stage, percent) VALUES (?, ?, ?)",
            )
            .bind(policy.to_string())
            .bind(stage.as_str())
            .bind(percent),
            Write::EndTrial(policy) => {
                sqlx::query("DELETE FROM policy_stages WHERE policy = ? AND stage <> 'retired'")
                    .bind(policy.to_string())
            }
            Write::EndTrialsOf(digest) => sqlx::query(
                "DELETE FROM policy_stages WHERE stage <> 'retired' AND policy IN \
                 (SELECT name || '@' || version FROM policies WHERE digest = ?)",
            )
            .bind(digest.to_string()),
            Write::EndCanary => sqlx::query("DELETE FROM policy_stages WHERE stage = 'canary'"),
            Write::Quarantine { digest, body } => {
                sqlx::query("INSERT OR IGNORE INTO policy_quarantine (digest, body) VALUES (?, ?)")
                    .bind(digest.to_string())
                    .bind(body)
            }
            Write::Experiment { key, body } => {
                sqlx::query("INSERT OR REPLACE INTO experiments (key, body) VALUES (?, ?)")
                    .bind(key)
                    .bind(body)
            }
            Write::Cohort { key, rule } => {
                sqlx::query("INSERT OR REPLACE INTO cohorts (key, rule) VALUES (?, ?)")
                    .bind(key)
                    .bind(rule)
            }
            Write::Flag { name, enabled } => {
                sqlx::query("INSERT OR REPLACE INTO flags (name, enabled) VALUES (?, ?)")
                    .bind(name)
                    .bind(enabled)
            }
        };
        query.execute(self).await.map_err(unavailable)?;
        Ok(())
    }

    async fn audit(
        &mut self,
        page: AuditPage,
        limit: i64,
    ) -> Result<Vec<AuditEntry>, RegistryError> {
        audit::read(self, page, limit).await
    }

    async fn append(&mut self, entry: &AuditEntry) -> Result<(), RegistryError> {
        audit::append(self, entry).await
    }

    fn corrupt(error: serde_json::Error) -> RegistryError {
        corrupt(error)
    }
}
