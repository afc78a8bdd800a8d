//! Keys: the one that signs tokens and cursors, configured or made once and kept in the data directory,
//! and others that are made in the same way.

use crate::config::Config;
use anyhow::Context;
use std::io::Write;
use std::path::Path;

const FILE: &str = "jwt.key";
const KEY_BYTES: usize = 32;

/// The configured key, else the data directory's, which is made now if there is none.
///
/// # Errors
/// When the key file cannot be read or written.
pub fn load_or_make(config: &Config) -> anyhow::Result<Vec<u8>> {
    match &config.auth.jwt_secret {
        Some(secret) => Ok(secret.clone().into_bytes()),
        None => load_or_make_file(&config.data_dir.join(FILE)),
    }
}

/// Whether there is a key already, so that none would be made.
pub fn is_there(config: &Config) -> bool {
    config.auth.jwt_secret.is_some() || config.data_dir.join(FILE).exists()
}

/// The key in a file, which is made now if there is none.
///
/// # Errors
/// When the file cannot be read or written.
pub fn load_or_make_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    if !path.exists() {
        make(path).with_context(|| format!("making the key {}", path.display()))?;
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the key {}", path.display()))?;
    hex::decode(text.trim()).with_context(|| {
        format!(
            "{} is damaged; delete it to make a new key (what was signed with the old one ends)",
            path.display()
        )
    })
}

/// Whoever comes first wins, and nobody ever reads half a key: the file is written under another
/// name and linked into place, which fails when one is there.
fn make(path: &Path) -> anyhow::Result<()> {
    let data_dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(data_dir)?;
    // Temporary files are made readable by their owner alone.
    let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
    writeln!(file, "{}", hex::encode(rand::random::<[u8; KEY_BYTES]>()))?;
    file.as_file().sync_all()?;
    match std::fs::hard_link(file.path(), path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        linked => Ok(linked?),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn everybody_who_starts_at_once_reads_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let keys: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| load_or_make_file(&dir.path().join(FILE)).unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(keys[0].len(), KEY_BYTES);
        assert!(keys.iter().all(|key| *key == keys[0]));
    }
}
