//! Secret keys that are strong enough to sign with. Code that signs takes a [`SecretKey`], so a
//! weak key reaches none of it.

/// Smallest number of bytes of a key, and of the part of it that does not repeat.
pub const KEY_BYTES_MIN: usize = 32;
/// Smallest number of different bytes. A random key of 32 decimal digits has fewer less than once
/// in ten million times, every other random key practically never.
const DIFFERENT_BYTES_MIN: usize = 6;
/// Parts of texts that stand in examples where a key belongs, in lower case and without
/// punctuation.
const PLACEHOLDERS: [&str; 10] = [
    "changeme",
    "changethis",
    "replaceme",
    "placeholder",
    "yoursecret",
    "yourkey",
    "supersecret",
    "atleast32",
    "atleast256bit",
    "256bitsecret",
];

/// A key that passed the checks of [`SecretKey::new`].
#[derive(Clone)]
pub struct SecretKey(Vec<u8>);

/// Reason why a key must not be used. It never contains the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakKey {
    #[error("is empty")]
    Empty,
    #[error("has {0} bytes; a key has at least {KEY_BYTES_MIN}")]
    Short(usize),
    #[error("is a placeholder from an example")]
    Placeholder,
    #[error("repeats a pattern of {0} bytes")]
    Repeated(usize),
    #[error("has only {0} different bytes")]
    FewBytes(usize),
    #[error("is a sequence such as 12345 or abcde")]
    Sequence,
}

impl SecretKey {
    /// Accepts a key of at least [`KEY_BYTES_MIN`] bytes that is not obviously guessable. The
    /// entropy of a key cannot be measured, so these checks find what people type and what broken
    /// scripts produce, not every weak key.
    ///
    /// # Errors
    /// The reason why the key is weak.
    pub fn new(bytes: Vec<u8>) -> Result<Self, WeakKey> {
        match weakness(&bytes) {
            None => Ok(Self(bytes)),
            Some(weakness) => Err(weakness),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

fn weakness(key: &[u8]) -> Option<WeakKey> {
    if key.is_empty() {
        return Some(WeakKey::Empty);
    }
    if is_placeholder(key) {
        return Some(WeakKey::Placeholder);
    }
    if key.len() < KEY_BYTES_MIN {
        return Some(WeakKey::Short(key.len()));
    }
    let different = different_bytes(key);
    if different < DIFFERENT_BYTES_MIN {
        return Some(WeakKey::FewBytes(different));
    }
    if let Some(period) = period(key)
        && period < KEY_BYTES_MIN
    {
        return Some(WeakKey::Repeated(period));
    }
    is_sequence(key).then_some(WeakKey::Sequence)
}

fn is_placeholder(key: &[u8]) -> bool {
    let letters = key.iter().filter(|byte| byte.is_ascii_alphanumeric());
    let letters: Vec<u8> = letters.map(u8::to_ascii_lowercase).collect();
    PLACEHOLDERS.iter().any(|placeholder| {
        letters
            .windows(placeholder.len())
            .any(|window| window == placeholder.as_bytes())
    })
}

fn different_bytes(key: &[u8]) -> usize {
    let mut sorted = key.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.len()
}

/// Returns the length of the shortest pattern that the key repeats at least twice.
fn period(key: &[u8]) -> Option<usize> {
    (1..=key.len() / 2).find(|period| key[*period..] == key[..key.len() - period])
}

/// Returns true if most bytes have the same distance to the byte before them, such as 1 in
/// `abcdef`.
fn is_sequence(key: &[u8]) -> bool {
    let mut distances = [0_usize; 256];
    for pair in key.windows(2) {
        distances[usize::from(pair[1].wrapping_sub(pair[0]))] += 1;
    }
    distances.iter().any(|count| 2 * count >= key.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::seq::IndexedRandom as _;

    #[test]
    fn keys_that_can_be_guessed_are_refused_with_the_reason() {
        let repeated = "correct horse battery ".repeat(3);
        let bytes: Vec<u8> = (0..64).collect();
        let cases: [(&[u8], WeakKey); 18] = [
            (b"", WeakKey::Empty),
            (b"hunter2", WeakKey::Short(7)),
            (&[0x5a; 31], WeakKey::Short(31)),
            (&[0; 32], WeakKey::FewBytes(1)),
            (&[b'x'; 64], WeakKey::FewBytes(1)),
            (b"abcabcabcabcabcabcabcabcabcabcabc", WeakKey::FewBytes(3)),
            (b"p4ssw0rdp4ssw0rdp4ssw0rdp4ssw0rd", WeakKey::Repeated(8)),
            (repeated.as_bytes(), WeakKey::Repeated(22)),
            (b"0123456789012345678901234567890123", WeakKey::Repeated(10)),
            (b"abcdefghijklmnopqrstuvwxyz0123456789", WeakKey::Sequence),
            (&bytes, WeakKey::Sequence),
            (
                b"change-me-change-me-change-me-change-me",
                WeakKey::Placeholder,
            ),
            (
                b"CHANGE_ME please, with 32 bytes or more",
                WeakKey::Placeholder,
            ),
            (b"<your-secret-key>", WeakKey::Placeholder),
            (
                b"super-secret-jwt-token-for-development",
                WeakKey::Placeholder,
            ),
            (
                b"a-string-secret-at-least-256-bits-long",
                WeakKey::Placeholder,
            ),
            (
                b"jwt-token-with-at-least-32-characters!",
                WeakKey::Placeholder,
            ),
            (b"your-256-bit-secret", WeakKey::Placeholder),
        ];
        for (key, reason) in cases {
            let refused = SecretKey::new(key.to_vec()).map(|_| ());
            assert_eq!(refused, Err(reason), "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn random_keys_of_every_usual_alphabet_are_accepted() {
        let bytes: Vec<u8> = (0..=255).collect();
        let alphabets: [&[u8]; 4] = [
            &bytes,
            b"0123456789abcdef",
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
            b"abcdefghijklmnopqrstuvwxyz ",
        ];
        let mut random = rand::rng();
        for alphabet in alphabets {
            for length in [32, 40, 64, 128] {
                for _ in 0..500 {
                    let key = (0..length).filter_map(|_| alphabet.choose(&mut random));
                    let key: Vec<u8> = key.copied().collect();
                    let accepted = SecretKey::new(key.clone()).map(|_| ());
                    assert_eq!(accepted, Ok(()), "{key:?}");
                }
            }
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = SecretKey::new(b"a secret that must not reach any log".to_vec());
        assert_eq!(format!("{key:?}"), "Ok(SecretKey(…))");
    }
}
