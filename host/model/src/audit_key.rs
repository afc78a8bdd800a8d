//! Authentication of the audit log: an HMAC of every entry under a key that is not in the
//! database. The hash chain alone can be computed again by a person with write access; the HMAC
//! cannot.
//!
//! A signature with a private key on one host would also show which host wrote an entry, but then
//! every host would need the public keys of all others. One shared key is what a fleet has already
//! for its tokens.

use crate::artifact::Digest;
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Number of bytes of a key's id. It only tells which of a few keys to use.
const KEY_ID_BYTES: usize = 4;

/// The HMAC-SHA256 of an entry's hash, and the id of its key. Written `key id:HMAC`, both in
/// hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac {
    key_id: [u8; KEY_ID_BYTES],
    tag: Digest,
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", hex::encode(self.key_id), self.tag)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{text}` is not the authentication of an audit entry");
        let (id, tag) = text.split_once(':').ok_or_else(malformed)?;
        let mut key_id = [0; KEY_ID_BYTES];
        hex::decode_to_slice(id, &mut key_id).map_err(|_| malformed())?;
        let tag = tag.parse().map_err(|_| malformed())?;
        Ok(Self { key_id, tag })
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[derive(Debug)]
struct AuditKey {
    id: [u8; KEY_ID_BYTES],
    key: hmac::Key,
}

impl AuditKey {
    /// Derives the key from `secret`, so that a secret with another use never shares a key.
    fn derive(secret: &[u8]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = hmac::sign(&root, b"nova audit log v1");
        let key = hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref());
        let mut id = [0; KEY_ID_BYTES];
        let named = hmac::sign(&key, b"id");
        id.copy_from_slice(&named.as_ref()[..KEY_ID_BYTES]);
        Self { id, key }
    }
}

/// The keys of the audit log. The first one authenticates new entries. The others are former keys,
/// which only verify. A host may have none.
#[derive(Debug, Clone, Default)]
pub struct AuditKeys(Arc<Vec<AuditKey>>);

/// Result of the check of one entry's authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    Authentic,
    Forged,
    /// None of the keys is the one that the entry names.
    UnknownKey,
}

impl AuditKeys {
    pub fn new<S: AsRef<[u8]>>(secrets: impl IntoIterator<Item = S>) -> Self {
        let keys = secrets.into_iter();
        Self(Arc::new(
            keys.map(|secret| AuditKey::derive(secret.as_ref()))
                .collect(),
        ))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Authenticates an entry's hash with the first key.
    pub fn mac(&self, hash: Digest) -> Option<Mac> {
        let AuditKey { id, key } = self.0.first()?;
        let mut tag = [0; 32];
        tag.copy_from_slice(hmac::sign(key, hash.as_bytes()).as_ref());
        Some(Mac {
            key_id: *id,
            tag: Digest::from_bytes(tag),
        })
    }

    pub fn check(&self, hash: Digest, mac: &Mac) -> Authentication {
        let Some(known) = self.0.iter().find(|key| key.id == mac.key_id) else {
            return Authentication::UnknownKey;
        };
        match hmac::verify(&known.key, hash.as_bytes(), mac.tag.as_bytes()) {
            Ok(()) => Authentication::Authentic,
            Err(_) => Authentication::Forged,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_former_key_verifies_and_the_first_one_signs() {
        let hash = Digest::from_content(b"entry");
        let (old, new) = ([1; 32], [2; 32]);
        let before = AuditKeys::new([old]).mac(hash).unwrap();
        let both = AuditKeys::new([new, old]);
        assert_eq!(both.check(hash, &before), Authentication::Authentic);
        let after = both.mac(hash).unwrap();
        assert_ne!(before, after);
        let only_old = AuditKeys::new([old]);
        assert_eq!(only_old.check(hash, &after), Authentication::UnknownKey);
        let other = Digest::from_content(b"other entry");
        assert_eq!(both.check(other, &after), Authentication::Forged);
    }

    #[test]
    fn the_written_form_of_an_authentication_is_stable() {
        let hash = Digest::from_content(b"entry");
        let mac = AuditKeys::new([[7; 32]]).mac(hash).unwrap();
        let text = concat!(
            "26bb03a1:",
            "383471ba21d3004e692364695caf48905f5a61abdafc895eb10104aad63e8b4a"
        );
        assert_eq!(mac.to_string(), text);
        assert_eq!(text.parse::<Mac>(), Ok(mac));
        assert!("0a0b0c0d".parse::<Mac>().is_err());
    }
}
