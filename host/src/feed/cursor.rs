//! Feed cursors: a cursor names a position in a snapshot, belongs to one viewer and cannot be
//! forged.
//!
//! Format: 16 bytes of ranking id, 4 bytes of position and 16 bytes of HMAC-SHA256 over both and
//! the viewer, in base64url. The viewer id is not part of the cursor, so another viewer's cursor
//! fails the same check as one that was tampered with.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nova_support::secret_key::SecretKey;
use uuid::Uuid;

const TAG_BYTES: usize = 16;
const LENGTH: usize = 16 + 4 + TAG_BYTES;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub ranking_id: Uuid,
    /// Number of snapshot entries that come before the page.
    pub position: u32,
}

/// The key that signs cursors. All hosts share it.
#[derive(Debug, Clone)]
pub struct CursorKey(hmac::Key);

/// Error for a text that is not a cursor of this viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a cursor that this viewer was given")]
pub struct InvalidCursor;

impl CursorKey {
    /// Derives the key from `secret`, so that cursors and tokens never share a key.
    pub fn derive(secret: &SecretKey) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        Self(hmac::Key::new(
            hmac::HMAC_SHA256,
            hmac::sign(&root, b"nova feed cursor v1").as_ref(),
        ))
    }

    fn tag(&self, viewer: u64, body: &[u8]) -> [u8; TAG_BYTES] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&viewer.to_be_bytes());
        context.update(body);
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&context.sign().as_ref()[..TAG_BYTES]);
        tag
    }

    pub fn encode(&self, viewer: u64, cursor: Cursor) -> String {
        let mut bytes = [0; LENGTH];
        bytes[..16].copy_from_slice(cursor.ranking_id.as_bytes());
        bytes[16..20].copy_from_slice(&cursor.position.to_be_bytes());
        let tag = self.tag(viewer, &bytes[..20]);
        bytes[20..].copy_from_slice(&tag);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Returns a key that signs the cursors of a test.
    #[cfg(test)]
    #[expect(clippy::unwrap_used, reason = "a test may panic")]
    pub fn of_test(secret: &[u8]) -> Self {
        Self::derive(&SecretKey::new(secret.to_vec()).unwrap())
    }

    /// Verifies and decodes a cursor.
    ///
    /// # Errors
    /// The cursor is malformed, was tampered with, or belongs to another viewer.
    pub fn decode(&self, viewer: u64, text: &str) -> Result<Cursor, InvalidCursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidCursor)?;
        let bytes: [u8; LENGTH] = bytes.try_into().map_err(|_| InvalidCursor)?;
        let (body, tag) = bytes.split_at(20);
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.tag(viewer, body), tag)
            .map_err(|_| InvalidCursor)?;
        let (ranking_id, position) = body.split_at(16);
        Ok(Cursor {
            ranking_id: Uuid::from_slice(ranking_id).map_err(|_| InvalidCursor)?,
            position: u32::from_be_bytes(position.try_into().map_err(|_| InvalidCursor)?),
        })
    }
}

#[cfg(test)]
mod format_tests;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> CursorKey {
        CursorKey::of_test(b"a secret that all hosts share, long enough")
    }

    proptest! {
        #[test]
        fn a_decoded_cursor_equals_the_encoded_one(viewer: u64, id: u128, position: u32) {
            let cursor = Cursor { ranking_id: Uuid::from_u128(id), position };
            prop_assert_eq!(key().decode(viewer, &key().encode(viewer, cursor)), Ok(cursor));
        }

        #[test]
        fn no_changed_bit_and_no_other_viewer_is_accepted(viewer in 1u64..1_000, other in 1_001u64..2_000, id: u128, bit in 0usize..LENGTH * 8) {
            let text = key().encode(viewer, Cursor { ranking_id: Uuid::from_u128(id), position: 50 });
            prop_assert_eq!(key().decode(other, &text), Err(InvalidCursor));
            let mut bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(key().decode(viewer, &URL_SAFE_NO_PAD.encode(bytes)), Err(InvalidCursor));
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text: String) {
            prop_assert_eq!(key().decode(1, &text), Err(InvalidCursor));
        }
    }
}
