//! The part of the policy registry that is the same in every engine: the steps of a change, the
//! rows that it writes, and the hash chain of the audit log. The engines have only the SQL.

use crate::ports::RegistryError;
use async_trait::async_trait;
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::audit::{AuditEntry, AuditPage, head_of_unhashed};
use nova_model::audit_key::AuditKeys;
use nova_model::registry::{Change, PolicyStage};
use nova_model::time::UnixMs;
use nova_support::clock::unix_ms;
use serde::Serialize;

/// One row to write or one set of rows to delete.
#[derive(Debug)]
pub(crate) enum Write<'a> {
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
    EndQuarantine(Digest),
    /// Adds the withdrawal of a digest by a host, unless it is there.
    Withdrawal {
        digest: Digest,
        host: &'a str,
        body: String,
    },
    /// Deletes the withdrawals of a digest by all hosts.
    EndWithdrawals(Digest),
    /// Puts the latest lift of a digest.
    Lift {
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
    RemovePolicy(&'a PolicyRef),
    /// Deletes every activation of a policy.
    RemoveActivations(&'a PolicyRef),
    RemoveModule(Digest),
}

impl<'a> Write<'a> {
    /// Returns the writes of a change, in their order.
    pub(crate) fn of_change(change: &'a Change) -> serde_json::Result<Vec<Self>> {
        Ok(match change {
            Change::Publish {
                spec,
                digest,
                at_ms,
                ..
            } => vec![Self::Policy {
                policy: &spec.policy,
                digest: *digest,
                spec: json(spec)?,
                at_ms: *at_ms,
            }],
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
            Change::Withdraw {
                digest,
                host,
                withdrawal,
            } => vec![Self::Withdrawal {
                digest: *digest,
                host,
                body: json(withdrawal)?,
            }],
            Change::Lift { digest, lift } => vec![
                Self::EndQuarantine(*digest),
                Self::EndWithdrawals(*digest),
                Self::Lift {
                    digest: *digest,
                    body: json(lift)?,
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
            Change::Prune { policies, modules } => {
                let policies = policies.iter().flat_map(|policy| {
                    [Self::RemovePolicy(policy), Self::RemoveActivations(policy)]
                });
                let modules = modules.iter().map(|digest| Self::RemoveModule(*digest));
                policies.chain(modules).collect()
            }
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

/// Returns the modules that a change needs in the registry.
pub(crate) fn modules_of(change: &Change) -> &[(Digest, Vec<u8>)] {
    match change {
        Change::Publish { modules, .. } => modules,
        Change::Reconciled { change, .. } => modules_of(change),
        _ => &[],
    }
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

    async fn has_module(&mut self, digest: Digest) -> Result<bool, Self::Error>;

    /// Reads entries of the audit log, at most `limit`.
    async fn audit(&mut self, page: AuditPage, limit: i64) -> Result<Vec<AuditEntry>, Self::Error>;

    /// Adds an entry to the audit log. Its id becomes the revision.
    async fn append(&mut self, entry: &AuditEntry) -> Result<(), Self::Error>;

    /// Returns the error of a value that has no stored form.
    fn corrupt(error: serde_json::Error) -> Self::Error;
}

/// Outcome of a change before its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// The new revision. Only this outcome is committed.
    At(i64),
    /// The registry is not at the expected revision.
    Outdated,
    /// The modules of the publication were removed after they were stored.
    ModuleRemoved,
    NoAuditKey,
}

impl Applied {
    /// Returns the new revision.
    pub(crate) fn revision(self) -> Result<i64, RegistryError> {
        match self {
            Self::At(revision) => Ok(revision),
            Self::Outdated => Err(RegistryError::Conflict(
                "the registry was changed in the meantime; read its state again and repeat the request"
                    .into(),
            )),
            Self::ModuleRemoved => Err(RegistryError::Conflict(
                "unused modules were removed in the meantime, and this policy's with them; publish it again"
                    .into(),
            )),
            Self::NoAuditKey => Err(RegistryError::NoAuditKey(
                "the audit log is authenticated, and this host has no audit key; set audit.keys (NOVA_AUDIT_KEYS) to the keys of the other hosts",
            )),
        }
    }
}

/// Writes a change and its audit entry, without a commit. The modules of a publication must be
/// stored already.
pub(crate) async fn apply<T: Transaction + ?Sized>(
    tx: &mut T,
    change: &Change,
    actor: &str,
    expected_revision: i64,
    keys: &AuditKeys,
) -> Result<Applied, T::Error> {
    if tx.locked_revision().await? != expected_revision {
        return Ok(Applied::Outdated);
    }
    for (digest, _) in modules_of(change) {
        if !tx.has_module(*digest).await? {
            return Ok(Applied::ModuleRemoved);
        }
    }
    let newest = tx.audit(AuditPage::NEWEST, 1).await?.pop();
    let is_authenticated = newest.as_ref().is_some_and(|newest| newest.mac.is_some());
    if is_authenticated && keys.is_empty() {
        return Ok(Applied::NoAuditKey);
    }
    for write in Write::of_change(change).map_err(T::corrupt)? {
        tx.write(write).await?;
    }
    let previous = match newest {
        Some(newest) if newest.hash.is_none() => unhashed_head(tx).await?,
        newest => newest.and_then(|newest| newest.hash),
    };
    let revision = expected_revision + 1;
    let entry =
        AuditEntry::new(change, actor, revision, unix_ms(), previous, keys).map_err(T::corrupt)?;
    tx.append(&entry).await?;
    Ok(Applied::At(revision))
}

/// Number of entries of a log without hashes that are read at once.
const UNHASHED_PAGE: i64 = 500;

/// Returns the hash that the first entry with a hash continues.
async fn unhashed_head<T: Transaction + ?Sized>(tx: &mut T) -> Result<Option<Digest>, T::Error> {
    let (mut head, mut page) = (None, AuditPage::OLDEST);
    loop {
        let entries = tx.audit(page, UNHASHED_PAGE).await?;
        let Some(last) = entries.last() else {
            return Ok(head);
        };
        page = AuditPage::After(last.id);
        head = head_of_unhashed(head, &entries).map_err(T::corrupt)?;
    }
}

/// Bytes of details in one page of the audit log, except that one entry may have more. A page of a
/// thousand entries with a detail of a megabyte each would not be read within any timeout.
pub(crate) const AUDIT_PAGE_BYTES: i64 = 1 << 20;

/// An audit entry's columns: id, at_ms, actor, action, subject, detail, previous_hash, hash, mac.
pub(crate) type AuditRow = (
    i64,
    i64,
    String,
    String,
    String,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
);

/// Decodes an audit entry.
///
/// # Errors
/// Fails with the reason if the detail is not JSON or a hash is not a digest.
pub(crate) fn audit_entry(row: AuditRow) -> Result<AuditEntry, String> {
    let (id, at_ms, actor, action, subject, detail, previous_hash, hash, mac) = row;
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
        mac: mac.as_deref().map(str::parse).transpose()?,
    })
}
