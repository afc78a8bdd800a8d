//! The policy registry in SQLite, in the same file as the data.

use super::audit::{self, corrupt, failed};
use super::{EmbeddedStore, to_sql};
use crate::ports::registry::{Registry, RegistryError};
use crate::registry::{Applied, Transaction, Write, apply};
use crate::registry_read::{Known, Only, Reader};
use anyhow::Context;
use async_trait::async_trait;
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::audit::{AuditEntry, AuditPage};
use nova_model::audit_head::AuditHead;
use nova_model::audit_key::AuditKeys;
use nova_model::experiments::cohort::Rule;
use nova_model::prune::StoredModule;
use nova_model::quarantine::{Lift, Quarantine, Withdrawal};
use nova_model::registry::{Change, Experiment, PublishedPolicy, RegistryState};
use serde::de::DeserializeOwned;
use sqlx::{SqliteConnection, SqlitePool};
use std::collections::BTreeMap;

/// The registry's tables in the embedded store's file.
#[derive(Debug, Clone)]
pub struct SqliteRegistry {
    reader: SqlitePool,
    writer: SqlitePool,
    keys: AuditKeys,
    known: Known,
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
        Ok(Self {
            reader,
            writer,
            keys: AuditKeys::default(),
            known: Known::default(),
        })
    }

    /// Authenticates new entries of the audit log.
    #[must_use]
    pub fn with_audit_keys(self, keys: AuditKeys) -> Self {
        Self { keys, ..self }
    }
}

#[async_trait]
impl Registry for SqliteRegistry {
    async fn load(&self) -> Result<RegistryState, RegistryError> {
        // One read transaction, because all parts must belong to one revision.
        let mut tx = self.reader.begin().await.map_err(failed)?;
        self.known.load(&mut *tx).await
    }

    async fn head(&self) -> Result<AuditHead, RegistryError> {
        head(&mut *self.reader.acquire().await.map_err(failed)?).await
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
            .map_err(failed)?;
        let applied = apply(&mut *tx, change, actor, expected_revision, &self.keys).await?;
        if let Applied::At(_) = applied {
            tx.commit().await.map_err(failed)?;
        }
        applied.revision()
    }

    async fn store_module(&self, digest: Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        // Damaged bytes are replaced.
        let insert = "INSERT INTO policy_modules (digest, bytes) VALUES (?, ?) \
             ON CONFLICT (digest) DO UPDATE SET bytes = excluded.bytes \
             WHERE policy_modules.bytes IS NOT excluded.bytes";
        let insert = sqlx::query(insert).bind(digest.to_string()).bind(bytes);
        insert.execute(&self.writer).await.map_err(failed)?;
        Ok(())
    }

    async fn stored_module(&self, digest: Digest) -> Result<Option<Vec<u8>>, RegistryError> {
        sqlx::query_scalar("SELECT bytes FROM policy_modules WHERE digest = ?")
            .bind(digest.to_string())
            .fetch_optional(&self.reader)
            .await
            .map_err(failed)
    }

    async fn stored_modules(&self) -> Result<Vec<StoredModule>, RegistryError> {
        let all = sqlx::query_as("SELECT digest, octet_length(bytes) FROM policy_modules");
        let rows: Vec<(String, i64)> = all.fetch_all(&self.reader).await.map_err(failed)?;
        let module = |(digest, bytes): (String, i64)| {
            Ok(StoredModule {
                digest: digest.parse().map_err(corrupt)?,
                bytes: bytes.unsigned_abs(),
            })
        };
        rows.into_iter().map(module).collect()
    }

    async fn audit(&self, page: AuditPage, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        let mut reader = self.reader.acquire().await.map_err(failed)?;
        audit::read(&mut reader, page, limit.into()).await
    }
}

async fn head(connection: &mut SqliteConnection) -> Result<AuditHead, RegistryError> {
    // `sqlite_sequence` keeps the highest id that AUTOINCREMENT gave, also if its row is removed.
    let find = "SELECT revision, (SELECT hash FROM audit WHERE id = revision) FROM \
         (SELECT coalesce(max(id), 0) AS revision FROM (SELECT max(id) AS id FROM audit \
          UNION ALL SELECT seq FROM sqlite_sequence WHERE name = 'audit'))";
    let row: (i64, Option<String>) = sqlx::query_as(find)
        .fetch_one(connection)
        .await
        .map_err(failed)?;
    let hash = row.1.as_deref().map(str::parse).transpose();
    Ok(AuditHead {
        revision: row.0,
        hash: hash.map_err(corrupt)?,
    })
}

#[async_trait]
impl Reader for SqliteConnection {
    type Error = RegistryError;

    async fn head(&mut self) -> Result<AuditHead, RegistryError> {
        head(self).await
    }

    async fn entry_hash(&mut self, id: i64) -> Result<Option<Digest>, RegistryError> {
        let find = sqlx::query_scalar("SELECT hash FROM audit WHERE id = ?").bind(id);
        let found: Option<Option<String>> = find.fetch_optional(self).await.map_err(failed)?;
        let hash = found.flatten().as_deref().map(str::parse).transpose();
        hash.map_err(corrupt)
    }

    async fn changes_after(
        &mut self,
        id: i64,
        limit: i64,
    ) -> Result<Vec<(String, String)>, RegistryError> {
        let find = "SELECT action, subject FROM audit WHERE id > ? ORDER BY id LIMIT ?";
        let find = sqlx::query_as(find).bind(id).bind(limit);
        find.fetch_all(self).await.map_err(failed)
    }

    async fn policies(
        &mut self,
        only: Only<'_, PolicyRef>,
    ) -> Result<Vec<PublishedPolicy>, RegistryError> {
        let rows: Vec<(String, String, i64)> = match only {
            None => {
                let all = "SELECT digest, spec, published_at_ms FROM policies \
                     ORDER BY published_at_ms, name, version";
                sqlx::query_as(all).fetch_all(self).await
            }
            Some(only) => {
                let some = "SELECT digest, spec, published_at_ms FROM policies WHERE (name, version) IN \
                     (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))";
                let names = only.iter().map(|policy| (&policy.name, &policy.version));
                let names: Vec<_> = names.collect();
                let names = serde_json::to_string(&names).map_err(corrupt)?;
                sqlx::query_as(some).bind(names).fetch_all(self).await
            }
        }
        .map_err(failed)?;
        rows.into_iter()
            .map(|(digest, spec, published_at_ms)| {
                Ok(PublishedPolicy {
                    spec: serde_json::from_str(&spec).map_err(corrupt)?,
                    digest: digest.parse().map_err(corrupt)?,
                    published_at_ms: published_at_ms as u64,
                })
            })
            .collect()
    }

    async fn activations(&mut self) -> Result<Vec<PolicyRef>, RegistryError> {
        let all = sqlx::query_scalar("SELECT policy FROM policy_activations ORDER BY id");
        let rows: Vec<String> = all.fetch_all(self).await.map_err(failed)?;
        rows.iter()
            .map(|policy| policy.parse().map_err(corrupt))
            .collect()
    }

    async fn stages(&mut self) -> Result<Vec<(String, String, Option<f64>)>, RegistryError> {
        let all = sqlx::query_as("SELECT policy, stage, percent FROM policy_stages");
        all.fetch_all(self).await.map_err(failed)
    }

    async fn quarantined(&mut self) -> Result<BTreeMap<Digest, Quarantine>, RegistryError> {
        by_digest(self, "SELECT digest, body FROM policy_quarantine").await
    }

    async fn lifts(&mut self) -> Result<BTreeMap<Digest, Lift>, RegistryError> {
        by_digest(self, "SELECT digest, body FROM policy_lifts").await
    }

    async fn withdrawals(
        &mut self,
    ) -> Result<BTreeMap<Digest, BTreeMap<String, Withdrawal>>, RegistryError> {
        let all = sqlx::query_as("SELECT digest, host, body FROM policy_withdrawals");
        let rows: Vec<(String, String, String)> = all.fetch_all(self).await.map_err(failed)?;
        let mut withdrawals = BTreeMap::<Digest, BTreeMap<_, _>>::new();
        for (digest, host, body) in rows {
            let by_host = withdrawals.entry(digest.parse().map_err(corrupt)?);
            let withdrawal = serde_json::from_str(&body).map_err(corrupt)?;
            by_host.or_default().insert(host, withdrawal);
        }
        Ok(withdrawals)
    }

    async fn experiments(
        &mut self,
        only: Only<'_, String>,
    ) -> Result<BTreeMap<String, Experiment>, RegistryError> {
        let rows = "SELECT key, body FROM experiments \
             WHERE ?1 IS NULL OR key IN (SELECT value FROM json_each(?1))";
        by_key(self, rows, only).await
    }

    async fn cohorts(
        &mut self,
        only: Only<'_, String>,
    ) -> Result<BTreeMap<String, Rule>, RegistryError> {
        let rows = "SELECT key, rule FROM cohorts \
             WHERE ?1 IS NULL OR key IN (SELECT value FROM json_each(?1))";
        by_key(self, rows, only).await
    }

    async fn flags(&mut self) -> Result<BTreeMap<String, bool>, RegistryError> {
        let all = sqlx::query_as("SELECT name, enabled FROM flags");
        let rows: Vec<(String, bool)> = all.fetch_all(self).await.map_err(failed)?;
        Ok(rows.into_iter().collect())
    }

    fn unreadable(reason: String) -> RegistryError {
        corrupt(reason)
    }
}

async fn by_digest<T: DeserializeOwned>(
    connection: &mut SqliteConnection,
    rows: &'static str,
) -> Result<BTreeMap<Digest, T>, RegistryError> {
    let rows = sqlx::query_as(rows);
    let rows: Vec<(String, String)> = rows.fetch_all(connection).await.map_err(failed)?;
    rows.into_iter()
        .map(|(digest, body)| {
            let body = serde_json::from_str(&body).map_err(corrupt)?;
            Ok((digest.parse().map_err(corrupt)?, body))
        })
        .collect()
}

async fn by_key<T: DeserializeOwned>(
    connection: &mut SqliteConnection,
    rows: &'static str,
    only: Only<'_, String>,
) -> Result<BTreeMap<String, T>, RegistryError> {
    let keys = only
        .map(serde_json::to_string)
        .transpose()
        .map_err(corrupt)?;
    let rows = sqlx::query_as(rows).bind(keys);
    let rows: Vec<(String, String)> = rows.fetch_all(connection).await.map_err(failed)?;
    rows.into_iter()
        .map(|(key, json)| Ok((key, serde_json::from_str(&json).map_err(corrupt)?)))
        .collect()
}

#[async_trait]
impl Transaction for SqliteConnection {
    type Error = RegistryError;

    async fn locked_revision(&mut self) -> Result<i64, RegistryError> {
        // `BEGIN IMMEDIATE` took the lock.
        Ok(head(self).await?.revision)
    }

    async fn write(&mut self, write: Write<'_>) -> Result<(), RegistryError> {
        let query = match write {
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
            Write::EndQuarantine(digest) => {
                sqlx::query("DELETE FROM policy_quarantine WHERE digest = ?")
                    .bind(digest.to_string())
            }
            Write::Withdrawal { digest, host, body } => sqlx::query(
                "INSERT OR IGNORE INTO policy_withdrawals (digest, host, body) VALUES (?, ?, ?)",
            )
            .bind(digest.to_string())
            .bind(host)
            .bind(body),
            Write::EndWithdrawals(digest) => {
                sqlx::query("DELETE FROM policy_withdrawals WHERE digest = ?")
                    .bind(digest.to_string())
            }
            Write::Lift { digest, body } => {
                sqlx::query("INSERT OR REPLACE INTO policy_lifts (digest, body) VALUES (?, ?)")
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
            Write::RemovePolicy(policy) => {
                sqlx::query("DELETE FROM policies WHERE name = ? AND version = ?")
                    .bind(&policy.name)
                    .bind(policy.version.to_string())
            }
            Write::RemoveActivations(policy) => {
                sqlx::query("DELETE FROM policy_activations WHERE policy = ?")
                    .bind(policy.to_string())
            }
            Write::RemoveModule(digest) => {
                sqlx::query("DELETE FROM policy_modules WHERE digest = ?").bind(digest.to_string())
            }
        };
        query.execute(self).await.map_err(failed)?;
        Ok(())
    }

    async fn has_module(&mut self, digest: Digest) -> Result<bool, RegistryError> {
        let find = "SELECT EXISTS (SELECT 1 FROM policy_modules WHERE digest = ?)";
        let find = sqlx::query_scalar(find).bind(digest.to_string());
        find.fetch_one(self).await.map_err(failed)
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
