//! A host's own memory of the audit log: how far it read the log, and the hash of the entry there.
//! It is on the host's disk, where a person who can write to the database does not reach it. If a
//! later log does not continue from there, the log was cut, rewritten or restored from a backup.
//!
//! A log without the remembered entry keeps raising the alert, and so does a memory that cannot be
//! read. An operator who restored a backup on purpose deletes the file, and the host begins again
//! with the log as it is.

use nova_model::artifact::Digest;
use nova_model::audit::{AuditPage, Broken, Verified, Verifier};
use nova_model::audit_head::AuditHead;
use nova_model::audit_key::AuditKeys;
use nova_stores::ports::registry::Registry;
use nova_support::durable_file;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FILE: &str = "audit_head.json";
const FORMAT: u32 = 1;
/// Number of audit log entries read per call.
const AUDIT_PAGE: u32 = 500;

/// Content of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    format: u32,
    revision: i64,
    hash: Digest,
    /// True if a known key authenticated an entry, so that every later one must be authenticated.
    authenticated: bool,
}

/// The entry up to which a host read the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    pub head: AuditHead,
    /// True if a known key authenticated an entry, so that every later one must be authenticated.
    pub authenticated: bool,
}

impl Memory {
    fn head(&self) -> AuditHead {
        AuditHead {
            revision: self.revision,
            hash: Some(self.hash),
        }
    }
}

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    #[error(
        "the log does not contain entry {} that this host read before: it was cut off or rewritten, or the registry was restored from a backup", .0.revision
    )]
    HeadMissing(AuditHead),
    #[error("{0}")]
    Broken(#[from] Broken),
    #[error(
        "the registry is at revision {revision}, but the newest entry is {newest}: the newest entries were removed"
    )]
    NewestMissing { revision: i64, newest: i64 },
    /// The file is left alone, so that a person can look at it.
    #[error(
        "what this host remembers of the log cannot be read: {0}; restore the file, or delete it to begin again with the log as it is"
    )]
    MemoryUnread(String),
}

#[derive(Debug)]
pub struct AuditWatch {
    path: PathBuf,
    keys: AuditKeys,
}

impl AuditWatch {
    /// Watches with the memory in `data_dir/registry/`.
    pub fn new(data_dir: &Path, keys: AuditKeys) -> Self {
        Self {
            path: data_dir.join("registry").join(FILE),
            keys,
        }
    }

    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the entry up to which this host read the log.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or has the format of a newer version.
    pub fn remembered(&self) -> Result<Option<Remembered>, Finding> {
        let remembered = |memory: Memory| Remembered {
            head: memory.head(),
            authenticated: memory.authenticated,
        };
        Ok(self.memory()?.map(remembered))
    }

    fn memory(&self) -> Result<Option<Memory>, Finding> {
        match durable_file::read_json::<Memory>(&self.path) {
            Ok(Some(memory)) if memory.format != FORMAT => Err(Finding::MemoryUnread(format!(
                "{} has the unknown format {}",
                self.path.display(),
                memory.format
            ))),
            Ok(memory) => Ok(memory),
            Err(unread) => Err(Finding::MemoryUnread(unread.to_string())),
        }
    }

    /// Reads the whole log.
    ///
    /// # Errors
    /// Fails if the registry does not answer or the disk write fails. The inner error is what is
    /// wrong with the log; the memory then stays as it was.
    pub async fn check_whole(
        &self,
        registry: &dyn Registry,
    ) -> anyhow::Result<Result<Verified, Finding>> {
        let remembered = match self.memory() {
            Ok(remembered) => remembered,
            Err(unread) => return Ok(Err(unread)),
        };
        let mut verifier = Verifier::new(self.keys.clone());
        if let Some(memory) = remembered {
            verifier.expect(Some(memory.revision), memory.hash);
            if memory.authenticated {
                verifier.require_authenticated_after(memory.revision);
            }
        }
        self.read(registry, verifier, 0).await
    }

    /// Reads the log from the remembered entry on.
    ///
    /// # Errors
    /// The same as for [`AuditWatch::check_whole`].
    pub async fn check(
        &self,
        registry: &dyn Registry,
    ) -> anyhow::Result<Result<Verified, Finding>> {
        let memory = match self.memory() {
            Ok(Some(memory)) => memory,
            Ok(None) => return self.check_whole(registry).await,
            Err(unread) => return Ok(Err(unread)),
        };
        let page = AuditPage::After(memory.revision - 1);
        let found = registry.audit(page, 1).await?.pop();
        let found =
            found.filter(|entry| entry.id == memory.revision && entry.hash == Some(memory.hash));
        let Some(entry) = found else {
            return Ok(Err(Finding::HeadMissing(memory.head())));
        };
        if memory.authenticated && entry.mac.is_none() {
            let (id, why) = (entry.id, "its authentication was removed");
            return Ok(Err(Broken { id, why }.into()));
        }
        let verifier = Verifier::after(memory.head(), self.keys.clone(), memory.authenticated);
        self.read(registry, verifier, memory.revision).await
    }

    async fn read(
        &self,
        registry: &dyn Registry,
        mut verifier: Verifier,
        after: i64,
    ) -> anyhow::Result<Result<Verified, Finding>> {
        // Read before the entries, so that a change in between is no finding.
        let revision = registry.head().await?.revision;
        let mut page = AuditPage::After(after);
        loop {
            let entries = registry.audit(page, AUDIT_PAGE).await?;
            let Some(last) = entries.last() else { break };
            page = AuditPage::After(last.id);
            for entry in &entries {
                if let Err(broken) = verifier.push(entry) {
                    return Ok(Err(broken.into()));
                }
            }
        }
        let is_authenticated = verifier.is_authenticated();
        let verified = match verifier.finish() {
            Ok(verified) => verified,
            Err(missing) => {
                let head = AuditHead {
                    revision: missing.revision.unwrap_or_default(),
                    hash: Some(missing.hash),
                };
                return Ok(Err(Finding::HeadMissing(head)));
            }
        };
        if verified.revision < revision {
            let newest = verified.revision;
            return Ok(Err(Finding::NewestMissing { revision, newest }));
        }
        self.remember(&verified, is_authenticated).await?;
        Ok(Ok(verified))
    }

    async fn remember(&self, verified: &Verified, authenticated: bool) -> anyhow::Result<()> {
        // The hash of an entry that is older than the chain is not stored with it, so it could not
        // be compared later.
        let Some(hash) = verified.head.filter(|_| verified.unattested == 0) else {
            return Ok(());
        };
        let memory = Memory {
            format: FORMAT,
            revision: verified.revision,
            hash,
            authenticated,
        };
        if self.memory() == Ok(Some(memory)) {
            return Ok(());
        }
        if let Some(directory) = self.path.parent() {
            tokio::fs::create_dir_all(directory).await?;
        }
        durable_file::write_json(self.path.clone(), &memory).await
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::testing::Fleet;
    use nova_model::registry::Change;

    const STORED: &[u8] = include_bytes!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/formats/v1/registry/audit_head.json"
    ));

    fn flag(enabled: bool) -> Change {
        Change::SetFlag {
            name: "f".into(),
            enabled,
        }
    }

    async fn apply(fleet: &Fleet, enabled: bool) {
        let revision = fleet.registry.revision().await.unwrap();
        let change = flag(enabled);
        fleet
            .registry
            .apply(&change, "ada", revision)
            .await
            .unwrap();
    }

    fn watch(fleet: &Fleet) -> AuditWatch {
        AuditWatch::new(&fleet.data_dir("here"), AuditKeys::new([[1; 32]]))
    }

    #[tokio::test]
    async fn the_remembered_head_is_read_and_written_again_to_the_same_bytes() {
        let fleet = Fleet::new().await;
        let watch = watch(&fleet);
        std::fs::create_dir_all(watch.path().parent().unwrap()).unwrap();
        std::fs::write(watch.path(), STORED).unwrap();
        let memory = watch.memory().unwrap().unwrap();
        let hash = "003d417d6206a39958ba1b86bcf8ef7b539c826f37eacbc87d3a5454f4d79ffd";
        let expected = Memory {
            format: 1,
            revision: 10,
            hash: hash.parse().unwrap(),
            authenticated: true,
        };
        assert_eq!(memory, expected);
        durable_file::write_json(watch.path.clone(), &memory)
            .await
            .unwrap();
        assert_eq!(std::fs::read(watch.path()).unwrap(), STORED);
    }

    fn revision(watch: &AuditWatch) -> i64 {
        watch.remembered().unwrap().unwrap().head.revision
    }

    #[tokio::test]
    async fn a_memory_that_cannot_be_read_is_a_finding_and_stays_as_it_is() {
        let fleet = Fleet::new().await;
        apply(&fleet, true).await;
        let watch = watch(&fleet);
        watch.check(&fleet.registry).await.unwrap().unwrap();
        let good = std::fs::read(watch.path()).unwrap();
        let json = r#"{"format":2,"revision":1,"hash":"003d417d6206a39958ba1b86bcf8ef7b539c826f37eacbc87d3a5454f4d79ffd","authenticated":true}"#;
        let newer = format!("{}\n{json}", Digest::from_content(json.as_bytes()));
        for unread in [&b""[..], b"\xff", &good[1..], newer.as_bytes()] {
            std::fs::write(watch.path(), unread).unwrap();
            for found in [
                watch.check(&fleet.registry).await.unwrap(),
                watch.check_whole(&fleet.registry).await.unwrap(),
            ] {
                assert!(matches!(found, Err(Finding::MemoryUnread(_))), "{found:?}");
            }
            let remembered = watch.remembered();
            assert!(
                matches!(remembered, Err(Finding::MemoryUnread(_))),
                "{remembered:?}"
            );
            assert_eq!(std::fs::read(watch.path()).unwrap(), unread);
        }
        std::fs::remove_file(watch.path()).unwrap();
        std::fs::create_dir(watch.path()).unwrap();
        let found = watch.check(&fleet.registry).await.unwrap();
        assert!(matches!(found, Err(Finding::MemoryUnread(_))), "{found:?}");
        std::fs::remove_dir(watch.path()).unwrap();
        watch.check(&fleet.registry).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_log_that_was_authenticated_once_is_never_accepted_without() {
        let fleet = Fleet::new().await;
        apply(&fleet, true).await;
        let watch = watch(&fleet);
        watch.check(&fleet.registry).await.unwrap().unwrap();
        let mut memory = watch.memory().unwrap().unwrap();
        assert!(!memory.authenticated, "the registry of the test has no key");
        memory.authenticated = true;
        durable_file::write_json(watch.path.clone(), &memory)
            .await
            .unwrap();
        for found in [
            watch.check(&fleet.registry).await.unwrap(),
            watch.check_whole(&fleet.registry).await.unwrap(),
        ] {
            assert!(matches!(found, Err(Finding::Broken(_))), "{found:?}");
        }
        apply(&fleet, false).await;
        let found = watch.check(&fleet.registry).await.unwrap();
        assert!(matches!(found, Err(Finding::Broken(_))), "{found:?}");
        assert_eq!(watch.memory(), Ok(Some(memory)));
    }

    #[tokio::test]
    async fn a_host_follows_the_log_and_finds_another_one_until_its_memory_is_deleted() {
        let [ours, other] = [Fleet::new().await, Fleet::new().await];
        let watch = watch(&ours);
        for n in 0..3 {
            apply(&ours, n % 2 == 0).await;
            let verified = watch.check(&ours.registry).await.unwrap().unwrap();
            assert_eq!(verified.revision, n + 1);
            assert_eq!(revision(&watch), n + 1);
        }
        // The other registry reaches the same revision and goes beyond it.
        for n in 0..5 {
            let found = watch.check(&other.registry).await.unwrap();
            assert!(matches!(found, Err(Finding::HeadMissing(_))), "{found:?}");
            let found = watch.check_whole(&other.registry).await.unwrap();
            assert!(matches!(found, Err(Finding::HeadMissing(_))), "{found:?}");
            apply(&other, n % 2 == 1).await;
        }
        assert_eq!(revision(&watch), 3);
        std::fs::remove_file(watch.path()).unwrap();
        let verified = watch.check(&other.registry).await.unwrap().unwrap();
        assert_eq!(verified.revision, 5);
    }
}
