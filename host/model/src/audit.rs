//! The hash chain of the audit log. Every entry contains the hash of the entry before it, so
//! that a change by a person with write access to the database is detected. The ids are 1, 2, 3,
//! …, so that a removed entry leaves a gap, and the newest id is the registry's revision.
//!
//! The chain alone cannot show that its newest entries were removed together with the revision, or
//! that the whole log was rewritten. Two things outside the database show it: the key that
//! authenticates entries ([`crate::audit_key`]), and the head that every host remembers.

use super::artifact::Digest;
use super::audit_head::AuditHead;
use super::audit_key::{AuditKeys, Authentication, Mac};
use super::registry::Change;
use crate::time::UnixMs;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// First value of the hashed form. A different form would get a different name.
const FORMAT: &str = "nova-audit-1";
/// First value of the hashed form for entries that are older than the chain. It has its own name
/// so that an entry whose hash was removed is not mistaken for one that never had a hash.
const OLDER_FORMAT: &str = "nova-audit-0";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditEntry {
    pub id: i64,
    pub at: DateTime<Utc>,
    /// The token's subject, or `watcher`, `cli`, `host`.
    pub actor: String,
    pub action: String,
    pub subject: String,
    pub detail: serde_json::Value,
    /// The hash of the entry before; null in the first.
    #[schema(value_type = Option<String>)]
    pub previous_hash: Option<Digest>,
    /// sha256 of `["nova-audit-1", previous_hash, id, at (ms), actor, action, subject, detail]`
    /// as canonical JSON (RFC 8785). Null in entries that are older than the chain.
    #[schema(value_type = Option<String>)]
    pub hash: Option<Digest>,
    /// `key id:HMAC-SHA256` of `hash` under a key that is not in the database. Absent if the host
    /// that wrote the entry has no audit key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mac: Option<Mac>,
}

/// Part of the log to read, and its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditPage {
    /// Entries older than this id, newest first.
    Before(i64),
    /// Entries newer than this id, oldest first.
    After(i64),
}

impl AuditPage {
    pub const NEWEST: Self = Self::Before(i64::MAX);
    pub const OLDEST: Self = Self::After(i64::MIN);
}

impl AuditEntry {
    /// Creates the entry of a change. `previous` is the hash of the entry before it. Without keys,
    /// the entry is not authenticated.
    ///
    /// # Errors
    /// Fails if the detail has no canonical form.
    pub fn new(
        change: &Change,
        actor: &str,
        id: i64,
        at_ms: UnixMs,
        previous: Option<Digest>,
        keys: &AuditKeys,
    ) -> serde_json::Result<Self> {
        let mut entry = Self {
            id,
            at: crate::time::utc(at_ms),
            actor: actor.to_owned(),
            action: change.action().to_owned(),
            subject: change.subject(),
            detail: change.detail(),
            previous_hash: previous,
            hash: None,
            mac: None,
        };
        let hash = entry.hash_after(previous)?;
        entry.hash = Some(hash);
        entry.mac = keys.mac(hash);
        Ok(entry)
    }

    /// Returns the hash of this entry if `previous` is the hash of the entry before it.
    fn hash_after(&self, previous: Option<Digest>) -> serde_json::Result<Digest> {
        self.hash_as(FORMAT, previous)
    }

    fn hash_as(
        &self,
        format: &'static str,
        previous: Option<Digest>,
    ) -> serde_json::Result<Digest> {
        let hashed = (
            format,
            previous,
            self.id,
            self.at.timestamp_millis(),
            &self.actor,
            &self.action,
            &self.subject,
            &self.detail,
        );
        Ok(Digest::from_content(&serde_json_canonicalizer::to_vec(
            &hashed,
        )?))
    }
}

/// Returns the `previous_hash` for the first entry with a hash in a log that is older than the
/// chain. The older entries, oldest first, are hashed as if they had always been in a chain. So
/// the first entry with a hash attests all of them in their present form. `head` is the result for
/// the entries before these.
///
/// # Errors
/// Fails if an entry has no canonical form.
pub fn head_of_unhashed(
    head: Option<Digest>,
    entries: &[AuditEntry],
) -> serde_json::Result<Option<Digest>> {
    entries.iter().try_fold(head, |head, entry| {
        entry.hash_as(OLDER_FORMAT, head).map(Some)
    })
}

/// Result for an unbroken chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub entries: u64,
    /// Number of the newest entries that no hash attests yet. It is above 0 if the log has not
    /// changed since the chain was introduced.
    pub unattested: u64,
    /// The hash of the newest entry. A person who notes it can check later if entries were
    /// removed.
    pub head: Option<Digest>,
    /// Id of the newest entry, 0 if there is none.
    pub revision: i64,
    /// Number of entries whose authentication is correct.
    pub authenticated: u64,
    /// Number of entries that were written before the first one that a known key authenticates.
    /// Without a key, this is every entry.
    pub before_authentication: u64,
}

/// The first entry that does not continue the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the chain breaks at entry {id}: {why}")]
pub struct Broken {
    pub id: i64,
    pub why: &'static str,
}

/// Heads that the log had once and does not contain any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no entry has the expected hash {hash}")]
pub struct Missing {
    /// Id of the entry, if it is known.
    pub revision: Option<i64>,
    pub hash: Digest,
}

/// Checks a log entry by entry, oldest first.
#[derive(Debug, Default)]
pub struct Verifier {
    verified: Verified,
    is_chained: bool,
    /// Every entry after this one must be authenticated. Once one entry is, no later one may do
    /// without, or else a forger could remove the authentications and append to the log.
    authenticated_after: Option<i64>,
    keys: AuditKeys,
    expected: Vec<Missing>,
}

impl Verifier {
    /// Creates a verifier for a whole log. With `keys` it also checks who wrote the entries.
    pub fn new(keys: AuditKeys) -> Self {
        Self {
            keys,
            ..Self::default()
        }
    }

    /// Creates a verifier for the entries after `head`, which were verified before.
    /// `is_authenticated` says if a known key authenticated one of them.
    pub fn after(head: AuditHead, keys: AuditKeys, is_authenticated: bool) -> Self {
        let authenticated_after = is_authenticated.then_some(head.revision);
        let verified = Verified {
            head: head.hash,
            revision: head.revision,
            ..Verified::default()
        };
        Self {
            verified,
            is_chained: head.hash.is_some(),
            authenticated_after,
            ..Self::new(keys)
        }
    }

    /// Also looks for an entry with this hash. With a revision, it must be that entry.
    pub fn expect(&mut self, revision: Option<i64>, hash: Digest) {
        self.expected.push(Missing { revision, hash });
    }

    /// Says that the log was authenticated when its newest entry had this id: that entry still
    /// has an authentication, and a known key authenticates every later one.
    pub fn require_authenticated_after(&mut self, revision: i64) {
        let earlier = self.authenticated_after.unwrap_or(revision);
        self.authenticated_after = Some(earlier.min(revision));
    }

    /// Checks the next entry.
    ///
    /// # Errors
    /// Fails if `entry` does not continue the chain.
    pub fn push(&mut self, entry: &AuditEntry) -> Result<(), Broken> {
        let broken = |why| Broken { id: entry.id, why };
        if entry.id != self.verified.revision + 1 {
            return Err(broken(
                "the entry before it is missing, or the entries were moved",
            ));
        }
        let before = self.verified.head;
        let format = entry.hash.map_or(OLDER_FORMAT, |_| FORMAT);
        let Ok(hash) = entry.hash_as(format, before) else {
            return Err(broken("its detail has no canonical form"));
        };
        match entry.hash {
            None if self.is_chained || entry.previous_hash.is_some() => {
                return Err(broken("its hash is missing"));
            }
            None => self.verified.unattested += 1,
            Some(_) if entry.previous_hash != before => {
                return Err(broken("an entry before it was changed, removed or added"));
            }
            Some(stored) if stored != hash => return Err(broken("it was changed")),
            Some(_) => {
                self.is_chained = true;
                self.verified.unattested = 0;
            }
        }
        self.authenticate(entry, hash).map_err(broken)?;
        self.expected.retain(|expected| {
            let is_other = expected.revision.is_some_and(|id| id != entry.id);
            is_other || expected.hash != hash
        });
        self.verified.revision = entry.id;
        self.verified.entries += 1;
        self.verified.head = Some(hash);
        Ok(())
    }

    /// Checks who wrote an entry. Entries from before the first one that a known key authenticates
    /// are accepted without, because they are as old as the log or older than a key that was lost.
    /// Without any key, a removed authentication is found, but not a forged one.
    fn authenticate(&mut self, entry: &AuditEntry, hash: Digest) -> Result<(), &'static str> {
        let is_from = self.authenticated_after.map(|after| entry.id >= after);
        let is_after = self.authenticated_after.map(|after| entry.id > after);
        let checked = entry.mac.as_ref().map(|mac| self.keys.check(hash, mac));
        match checked {
            Some(Authentication::Authentic) => {
                self.require_authenticated_after(entry.id);
                self.verified.authenticated += 1;
            }
            Some(Authentication::Forged) => {
                return Err("its authentication does not match: it was forged");
            }
            None if is_from == Some(true) => {
                return Err(
                    "it has no authentication, but the log was authenticated before: the authentication was removed, the entry was forged, or a host without the audit key wrote it",
                );
            }
            Some(Authentication::UnknownKey) if is_after == Some(true) && !self.keys.is_empty() => {
                return Err(
                    "no known key authenticates it: it was forged, or a host without the audit key of the other hosts wrote it",
                );
            }
            None | Some(Authentication::UnknownKey) => self.verified.before_authentication += 1,
        }
        Ok(())
    }

    /// Reports if a known key authenticated an entry, so that every later one must be
    /// authenticated.
    pub fn is_authenticated(&self) -> bool {
        self.authenticated_after.is_some()
    }

    /// Returns the result.
    ///
    /// # Errors
    /// Returns an expected head that was not found.
    pub fn finish(self) -> Result<Verified, Missing> {
        match self.expected.into_iter().next() {
            None => Ok(self.verified),
            Some(missing) => Err(missing),
        }
    }
}

/// Checks the chain of a whole log, oldest entry first, without a key.
///
/// # Errors
/// Returns the first entry that does not continue the chain.
pub fn verify<'a>(entries: impl IntoIterator<Item = &'a AuditEntry>) -> Result<Verified, Broken> {
    let mut verifier = Verifier::default();
    for entry in entries {
        verifier.push(entry)?;
    }
    Ok(verifier.verified)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Content of an entry without its place in the log.
    #[derive(Debug, Clone)]
    struct Said {
        actor: String,
        action: &'static str,
        subject: String,
        detail: serde_json::Value,
        at_ms: u64,
    }

    fn said() -> impl Strategy<Value = Said> {
        let numbers = any::<f64>().prop_filter("JSON has finite numbers only", |n| n.is_finite());
        let detail = ("\\PC{0,8}", numbers, any::<bool>())
            .prop_map(|(text, number, flag)| json!({"reason": text, "weight": number, "b": {"on": flag}, "a": null}));
        let action = prop_oneof![Just("activate"), Just("rollback"), Just("set_flag")];
        ("[a-z]{1,3}", action, "\\PC{0,8}", detail, 0_u64..1 << 42).prop_map(
            |(actor, action, subject, detail, at_ms)| Said {
                actor,
                action,
                subject,
                detail,
                at_ms,
            },
        )
    }

    /// Numbers and chains the entries again, as a person with write access would, and leaves the
    /// authentications as they are.
    fn rehash(log: &mut [AuditEntry]) {
        let mut head = None;
        for (at, entry) in log.iter_mut().enumerate() {
            entry.id = at as i64 + 1;
            entry.previous_hash = entry.hash.and(head);
            let format = entry.hash.map_or(OLDER_FORMAT, |_| FORMAT);
            let hash = entry.hash_as(format, head).unwrap();
            entry.hash = entry.hash.and(Some(hash));
            head = Some(hash);
        }
    }

    /// Creates a log whose first `old` entries were written before the chain was introduced.
    fn log(said: &[Said], old: usize) -> Vec<AuditEntry> {
        let mut log: Vec<AuditEntry> = Vec::new();
        for (at, said) in said.iter().enumerate() {
            let mut entry = AuditEntry {
                id: at as i64 + 1,
                at: crate::time::utc(said.at_ms),
                actor: said.actor.clone(),
                action: said.action.to_owned(),
                subject: said.subject.clone(),
                detail: said.detail.clone(),
                previous_hash: None,
                hash: None,
                mac: None,
            };
            if at >= old {
                entry.previous_hash = match log.last() {
                    Some(last) if last.hash.is_some() => last.hash,
                    _ => head_of_unhashed(None, &log).unwrap(),
                };
                entry.hash = Some(entry.hash_after(entry.previous_hash).unwrap());
            }
            log.push(entry);
        }
        log
    }

    #[derive(Debug, Clone)]
    enum Tampering {
        Actor(usize, String),
        Detail(usize),
        Time(usize),
        Id(usize),
        Hash(usize),
        NoHash(usize),
        Remove(usize),
        Repeat(usize),
        Swap(usize, usize),
        /// A forged entry whose hash is correct for its content.
        Insert(usize, Said),
        /// A changed entry whose own hash was computed again.
        Rewrite(usize, String),
    }

    fn tampering() -> impl Strategy<Value = Tampering> {
        let at = 0_usize..100;
        prop_oneof![
            (at.clone(), "[A-Z]{1,3}").prop_map(|(at, actor)| Tampering::Actor(at, actor)),
            at.clone().prop_map(Tampering::Detail),
            at.clone().prop_map(Tampering::Time),
            at.clone().prop_map(Tampering::Id),
            at.clone().prop_map(Tampering::Hash),
            at.clone().prop_map(Tampering::NoHash),
            at.clone().prop_map(Tampering::Remove),
            at.clone().prop_map(Tampering::Repeat),
            (at.clone(), 1_usize..100).prop_map(|(at, step)| Tampering::Swap(at, step)),
            (at.clone(), said()).prop_map(|(at, said)| Tampering::Insert(at, said)),
            (at, "[A-Z]{1,3}").prop_map(|(at, actor)| Tampering::Rewrite(at, actor)),
        ]
    }

    impl Tampering {
        /// Returns the changed log and the first position that may differ.
        fn tamper(self, mut log: Vec<AuditEntry>) -> (Vec<AuditEntry>, usize) {
            let length = log.len();
            let at = match self {
                Self::Actor(at, actor) => {
                    log[at % length].actor = actor;
                    at % length
                }
                Self::Detail(at) => {
                    log[at % length].detail["b"]["on"] = json!("perhaps");
                    at % length
                }
                Self::Time(at) => {
                    log[at % length].at += chrono::Duration::milliseconds(1);
                    at % length
                }
                Self::Id(at) => {
                    log[at % length].id += 1;
                    at % length
                }
                Self::Hash(at) => {
                    log[at % length].hash = Some(Digest::from_content(b"forged"));
                    at % length
                }
                Self::NoHash(at) => {
                    log[at % length].hash = None;
                    at % length
                }
                Self::Remove(at) => {
                    log.remove(at % length);
                    at % length
                }
                Self::Repeat(at) => {
                    log.insert(at % length, log[at % length].clone());
                    at % length
                }
                Self::Swap(at, step) => {
                    let (at, other) = (at % length, (at + step) % length);
                    log.swap(at, other);
                    at.min(other)
                }
                Self::Insert(at, said) => {
                    let at = at % length;
                    let mut forged = self::log(&[said], 0).remove(0);
                    forged.id = log[at].id;
                    forged.previous_hash = log[at].previous_hash;
                    forged.hash = Some(forged.hash_after(forged.previous_hash).unwrap());
                    for entry in &mut log[at..] {
                        entry.id += 1;
                    }
                    log.insert(at, forged);
                    at
                }
                Self::Rewrite(at, actor) => {
                    let entry = &mut log[at % length];
                    entry.actor = actor;
                    entry.hash = Some(entry.hash_after(entry.previous_hash).unwrap());
                    at % length
                }
            };
            (log, at)
        }
    }

    proptest! {
        #[test]
        fn an_unchanged_log_is_unbroken_also_after_json(said in prop::collection::vec(said(), 0..12), old in 0_usize..12) {
            let log = log(&said, old);
            let verified = verify(&log).unwrap();
            prop_assert_eq!(verified.entries, said.len() as u64);
            prop_assert_eq!(verified.unattested, if old >= said.len() { said.len() as u64 } else { 0 });
            let text = serde_json::to_string(&log).unwrap();
            let read: Vec<AuditEntry> = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(verify(&read).unwrap(), verified);
        }

        /// Only a noted hash of the head attests the newest entry. So a change of the newest
        /// entry may pass the check, but then the head is different.
        #[test]
        fn every_changed_removed_added_or_moved_entry_is_found(
            said in prop::collection::vec(said(), 1..12), old in 0_usize..12, tampering in tampering(),
        ) {
            let log = log(&said, old);
            let (tampered, at) = tampering.tamper(log.clone());
            prop_assume!(tampered != log);
            let head = verify(&log).unwrap().head;
            match verify(&tampered) {
                Err(broken) => prop_assert!(broken.id > 0),
                Ok(verified) => {
                    let is_attested = old < log.len() && at + 1 < log.len();
                    prop_assert!(!is_attested, "not found: {:?}", tampered);
                    prop_assert_ne!(verified.head, head);
                }
            }
        }

        #[test]
        fn removed_newest_entries_are_found_with_the_noted_head(
            said in prop::collection::vec(said(), 1..12), old in 0_usize..12, kept in 0_usize..12,
        ) {
            let log = log(&said, old);
            let head = verify(&log).unwrap().head;
            let read = |entries: &[AuditEntry], revision| {
                let mut verifier = Verifier::default();
                verifier.expect(revision, head.unwrap());
                entries.iter().for_each(|entry| verifier.push(entry).unwrap());
                verifier.finish()
            };
            for revision in [None, Some(log.len() as i64)] {
                prop_assert!(read(&log, revision).is_ok());
                let kept = kept.min(log.len() - 1);
                prop_assert!(read(&log[..kept], revision).is_err());
            }
            prop_assert!(read(&log, Some(log.len() as i64 + 1)).is_err());
        }

        /// A person who can write to the database can compute every hash again, but no HMAC.
        #[test]
        fn a_log_with_recomputed_hashes_is_found_from_the_first_authenticated_entry_on(
            said in prop::collection::vec(said(), 1..12), old in 0_usize..12, begin in 0_usize..12,
            tampering in tampering(),
        ) {
            let keys = AuditKeys::new([[7; 32]]);
            let sign = |log: &mut [AuditEntry]| for entry in &mut log[begin.min(said.len())..] {
                entry.mac = entry.hash.and_then(|hash| keys.mac(hash));
            };
            let mut log = log(&said, old);
            sign(&mut log);
            let read = |entries: &[AuditEntry]| {
                let mut verifier = Verifier::new(keys.clone());
                entries.iter().try_for_each(|entry| verifier.push(entry))?;
                Ok::<_, Broken>(verifier.finish().unwrap())
            };
            let begun = log.iter().filter(|entry| entry.mac.is_some()).count() as u64;
            let verified = read(&log).unwrap();
            prop_assert_eq!(verified.authenticated, begun);
            prop_assert_eq!(verified.before_authentication + begun, log.len() as u64);
            prop_assume!(begun > 0);
            let (mut forged, _) = tampering.tamper(log.clone());
            rehash(&mut forged);
            prop_assume!(forged != log);
            let is_prefix = forged.len() < log.len() && log.starts_with(&forged);
            let first = forged.iter().zip(&log).position(|(new, old)| new != old);
            // Removed newest entries are found by their number, which a host remembers.
            if !is_prefix {
                prop_assert!(read(&forged).is_err(), "{:?} of {:?}", first, forged);
            }
        }
    }

    /// A person who can write to the database removes all authentications and continues the chain.
    #[test]
    fn a_log_without_its_authentications_is_found_if_it_had_them_once() {
        let keys = AuditKeys::new([[7; 32]]);
        let change = |n: u64| Said {
            actor: "ada".into(),
            action: "rollback",
            subject: "p@1.0.0".into(),
            detail: json!({ "n": n }),
            at_ms: n,
        };
        let all: Vec<Said> = (0..5).map(change).collect();
        let stripped = log(&all, 0);
        let mut signed = stripped.clone();
        for entry in &mut signed {
            entry.mac = entry.hash.and_then(|hash| keys.mac(hash));
        }
        let read = |entries: &[AuditEntry], keys: &AuditKeys, once: Option<i64>| {
            let mut verifier = Verifier::new(keys.clone());
            if let Some(revision) = once {
                verifier.require_authenticated_after(revision);
            }
            entries.iter().try_for_each(|entry| verifier.push(entry))
        };
        let no_keys = AuditKeys::default();
        for keys in [&keys, &no_keys] {
            assert_eq!(read(&signed, keys, Some(3)), Ok(()));
            // Nothing says that this log was ever authenticated.
            assert_eq!(read(&stripped, keys, None), Ok(()));
            assert_eq!(read(&stripped, keys, Some(3)).unwrap_err().id, 3);
            assert_eq!(read(&stripped, keys, Some(0)).unwrap_err().id, 1);
            // Only the entries up to the remembered one keep theirs.
            let mut appended = signed.clone();
            appended[3].mac = None;
            appended[4].mac = None;
            assert_eq!(read(&appended, keys, Some(3)).unwrap_err().id, 4);
        }
        let other = AuditKeys::new([[8; 32]]);
        assert_eq!(read(&signed, &other, Some(3)).unwrap_err().id, 4);
        let head = AuditHead {
            revision: 3,
            hash: stripped[2].hash,
        };
        let mut verifier = Verifier::after(head, keys, true);
        assert_eq!(verifier.push(&stripped[3]).unwrap_err().id, 4);
    }

    #[test]
    fn the_hash_is_the_documented_sha256_of_canonical_json() {
        let said = Said {
            actor: "ada".into(),
            action: "rollback",
            subject: "p@1.0.0".into(),
            detail: json!({"to": "p@0.9.0", "reason": "complaints"}),
            at_ms: 1_700_000_000_123,
        };
        let entry = log(&[said], 0).remove(0);
        let canonical = r#"["nova-audit-1",null,1,1700000000123,"ada","rollback","p@1.0.0",{"reason":"complaints","to":"p@0.9.0"}]"#;
        assert_eq!(entry.hash, Some(Digest::from_content(canonical.as_bytes())));
    }
}
