//! Secret keys: the key that signs tokens and cursors, which is configured or generated once and
//! kept in the data directory, and other keys that are generated in the same way.

use crate::config::Config;
use nova_support::key_file;
use nova_support::secret_key::SecretKey;

const FILE: &str = "jwt.key";

/// Returns the configured key, else the key of the data directory. Generates that key if there
/// is none.
///
/// # Errors
/// The configured key is weak, or the key file cannot be read, written or trusted.
pub fn load_or_make(config: &Config) -> anyhow::Result<SecretKey> {
    match config.auth.secret_key().map_err(anyhow::Error::msg)? {
        Some(key) => Ok(key),
        None => key_file::load_or_make_file(&config.data_dir.join(FILE)),
    }
}

/// Returns true if a key exists, so that none would be generated.
pub fn is_there(config: &Config) -> bool {
    config.auth.jwt_secret.is_some() || config.data_dir.join(FILE).exists()
}
