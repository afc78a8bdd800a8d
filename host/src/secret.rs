//! Secret keys: the key that signs tokens and cursors, and those that authenticate the audit log.
//! They are configured, or generated once and kept in the data directory.

use crate::config::Config;
use nova_model::audit_key::AuditKeys;
use nova_support::key_file;
use nova_support::secret_key::SecretKey;

const FILE: &str = "jwt.key";
const AUDIT_FILE: &str = "audit.key";

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

/// Returns the configured keys of the audit log, else the key of the data directory of an embedded
/// host, which is generated if there is none. Hosts on the stack share their registry, so a key of
/// one host alone would be of no use: without configured keys they have none.
///
/// # Errors
/// A configured key is weak, or a key file cannot be read, written or trusted.
pub fn audit_keys(config: &Config) -> anyhow::Result<AuditKeys> {
    let configured = config.audit.secret_keys()?;
    if !configured.is_empty() {
        return Ok(AuditKeys::new(configured.iter().map(SecretKey::as_bytes)));
    }
    if config.stores.stack().is_some() {
        return Ok(AuditKeys::default());
    }
    let key = key_file::load_or_make_file(&config.data_dir.join(AUDIT_FILE))?;
    Ok(AuditKeys::new([key.as_bytes()]))
}

/// Returns the keys of the audit log that exist, and generates none.
///
/// # Errors
/// A key file cannot be read.
pub fn present_audit_keys(config: &Config) -> anyhow::Result<AuditKeys> {
    let is_generated = config.audit.secret_keys()?.is_empty() && config.stores.stack().is_none();
    match is_generated && !config.data_dir.join(AUDIT_FILE).exists() {
        true => Ok(AuditKeys::default()),
        false => audit_keys(config),
    }
}
