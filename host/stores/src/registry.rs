//! The part of the policy registry that is the same in every engine: the steps of a change, the
//! rows that it writes, and the hash chain of the audit log. The engines have only the SQL.

use crate::ports::RegistryError;
use async_trait::async_trait;
use nova_model::artifact::{Digest, PolicyRef, PolicySpec};
use nova_model::audit::{AuditEntry, AuditPage, head_of_unhashed};
use nova_model::registry::{Change, PolicyStage};
use nova_model::time::UnixMs;
use nova_support::clock::unix_ms;
use serde::Serialize;

/// One row to write or one set of rows to delete.
#[derive(Debug)]
pub(crate) enum Write<'a> {
    /// Adds a module, unless it is there.
    Module {
        digest: Digest,
        bytes: &'a [u8],
    },
    Policy {
        policy: &'a PolicyRef,
        digest: Digest,
        spec: String,
        at_ms: UnixMs,
    },
    Activation(&'a PolicyRef),
    /// Deletes every activation above the policy's last one below the top. The ones in between
    /// are of quarantined policies.
    Rollback(&'a PolicyRef),
    /// Puts a policy into a stage, in place of the one that it is in.
    Stage {
        policy: &'a PolicyRef,
        stage: PolicyStage,
        percent: Option<f64>,
    },
    /// Ends the shadow or the canary of a policy.
    EndTrial(&'a PolicyRef),
    /// Ends the shadows and the canary of all policies with this digest.
    EndTrialsOf(Digest),
    EndCanary,
    /// Adds a quarantine, unless the digest is in quarantine already.
    Quarantine {
        digest: Digest,
        body: String,
    },
    Experiment {
        key: &'a str,
        body: String,
    },
    Cohort {
        key: &'a str,
        rule: String,
    },
    Flag {
        name: &'a str,
        enabled: bool,
    },
}

impl<'a> Write<'a> {
    /// Returns the writes of a change, in their order.
    pub(crate) fn of_change(change: &'a Change) -> serde_json::Result<Vec<Self>> {
        Ok(match change {
            Change::Publish {
                spec,
                digest,
                modules,
                at_ms,
                ..
            } => publication(spec, *digest, modules, *at_ms)?,
            Change::Activate { policy } => vec![Self::EndTrial(policy), Self::Activation(policy)],
            Change::Rollback { to, .. } => vec![Self::EndTrial(to), Self::Rollback(to)],
            Change::Shadow { policy } => vec![Self::stage(policy, PolicyStage::Shadow, None)],
            Change::Retire { policy } => vec![Self::stage(policy, PolicyStage::Retired, None)],
            Change::Canary { policy, percent } if *percent > 0.0 => vec![
                Self::EndCanary,
                Self::stage(policy, PolicyStage::Canary, Some(*percent)),
            ],
            Change::Canary { policy, .. } => vec![Self::EndTrial(policy)],
            Change::Quarantine { digest, quarantine } => vec![
                Self::EndTrialsOf(*digest),
                Self::Quarantine {
                    digest: *digest,
                    body: json(quarantine)?,
                },
            ],
            Change::PutExperiment { key, experiment } => vec![Self::Experiment {
                key,
                body: json(experiment)?,
            }],
            Change::PutCohort { key, rule } => vec![Self::Cohort {
                key,
                rule: json(rule)?,
            }],
            Change::SetFlag { name, enabled } => vec![Self::Flag {
                name,
                enabled: *enabled,
            }],
            Change::Reconciled { change, .. } => Self::of_change(change)?,
            Change::Dropped { .. } => Vec::new(),
        })
    }

    fn stage(policy: &'a PolicyRef, stage: PolicyStage, percent: Option<f64>) -> Self {
        Self::Stage {
            policy,
            stage,
            percent,
        }
    }
}

fn publication<'a>(
    spec: &'a PolicySpec,
    digest: Digest,
    modules: &'a [(Digest, Vec<u8>)],
    at_ms: UnixMs,
) -> serde_json::Result<Vec<Write<'a>>> {
    let module = |(digest, bytes): &'a (Digest, Vec<u8>)| Write::Module {
        digest: *digest,
        bytes,
    };
    let mut writes: Vec<_> = modules.iter().map(module).collect();
    writes.push(Write::Policy {
        policy: &spec.policy,
        digest,
        spec: json(spec)?,
        at_ms,
    });
    Ok(writes)
}

fn json(body: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(body)
}

/// An open transaction of one engine that changes the registry.
#[async_trait]
pub(crate) trait Transaction: Send {
    type Error: Send;

    /// Returns the revision, which no other transaction changes before this one ends.
    async fn locked_revision(&mut self) -> Result<i64, Self::Error>;

    async fn write(&mut self, write: Write<'_>) -> Result<(), Self::Error>;

    /// Reads entries of the audit log, at most `limit`.
    async fn audit(&mut self, page: AuditPage, limit: i64) -> Result<Vec<AuditEntry>, Self::Error>;

    /// Adds an entry to the audit log. Its id becomes the revision.
    async fn append(&mut self, entry: &AuditEntry) -> Result<(), Self::Error>;

    /// Returns the error of a value that has no stored form.
    fn corrupt(error: serde_json::Error) -> Self::Error;
}

/// Writes a change and its audit entry, without a commit. Returns the new revision, or `None` if
/// the registry is not at `expected_revision`.
pub(crate) async fn apply<T: Transaction + ?Sized>(
    tx: &mut T,
    change: &Change,
    actor: &str,
    expected_revision: i64,
) -> Result<Option<i64>, T::Error> {
    if tx.locked_revision().await? != expected_revision {
        return Ok(None);
    }
    for write in Write::of_change(change).map_err(T::corrupt)? {
        tx.write(write).await?;
    }
    let revision = expected_revision + 1;
    let previous = audit_head(tx).await?;
    let entry =
        AuditEntry::new(change, actor, revision, unix_ms(), previous).map_err(T::corrupt)?;
    tx.append(&entry).await?;
    Ok(Some(revision))
}

/// Returns the hash that the next entry continues.
async fn audit_head<T: Transaction + ?Sized>(tx: &mut T) -> Result<Option<Digest>, T::Error> {
    let newest = tx.audit(AuditPage::NEWEST, 1).await?;
    match newest.first() {
        Some(newest) if newest.hash.is_none() => {
            let all = tx.audit(AuditPage::OLDEST, i64::MAX).await?;
            head_of_unhashed(&all).map_err(T::corrupt)
        }
        newest => Ok(newest.and_then(|newest| newest.hash)),
    }
}

/// Returns the error of a change that is based on an older state.
pub(crate) fn outdated() -> RegistryError {
    RegistryError::Conflict(
        "the registry was changed in the meantime; read its state again and repeat the request"
            .into(),
    )
}

/// An audit entry's columns: id, at_ms, actor, action, subject, detail, previous_hash, hash.
pub(crate) type AuditRow = (
    i64,
    i64,
    String,
    String,
    String,
    String,
    Option<String>,
    Option<String>,
);

/// Decodes an audit entry.
///
/// # Errors
/// Fails with the reason if the detail is not JSON or a hash is not a digest.
pub(crate) fn audit_entry(row: AuditRow) -> Result<AuditEntry, String> {
    let (id, at_ms, actor, action, subject, detail, previous_hash, hash) = row;
    let digest = |text: Option<String>| {
        let parsed = text.as_deref().map(str::parse::<Digest>).transpose();
        parsed.map_err(|error| error.to_string())
    };
    Ok(AuditEntry {
        id,
        at: chrono::DateTime::from_timestamp_millis(at_ms).unwrap_or_default(),
        actor,
        action,
        subject,
        detail: serde_json::from_str(&detail).map_err(|error| error.to_string())?,
        previous_hash: digest(previous_hash)?,
        hash: digest(hash)?,
    })
}
