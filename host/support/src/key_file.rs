//! Key files: random keys that are made once and kept in the data directory.

use anyhow::Context;
use std::io::Write;
use std::path::Path;

const KEY_BYTES: usize = 32;

/// Returns the key of a file. Generates it if the file does not exist.
///
/// # Errors
/// The file cannot be read or written, or it is damaged.
pub fn load_or_make_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    if !path.exists() {
        make(path).with_context(|| format!("could not generate the key {}", path.display()))?;
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("could not read the key {}", path.display()))?;
    hex::decode(text.trim()).with_context(|| {
        format!(
            "{} is damaged; delete it to generate a new key (everything signed with the old one becomes invalid)",
            path.display()
        )
    })
}

/// Generates a key. The first of several hosts wins, and no host ever reads a partial key: the
/// file is written under another name and then linked into place, which fails if the key already
/// exists.
fn make(path: &Path) -> anyhow::Result<()> {
    let data_dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(data_dir)?;
    // Temporary files are created readable only by their owner.
    let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
    writeln!(file, "{}", hex::encode(rand::random::<[u8; KEY_BYTES]>()))?;
    file.as_file().sync_all()?;
    match std::fs::hard_link(file.path(), path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        linked => Ok(linked?),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn threads_that_start_at_the_same_time_read_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let keys: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| load_or_make_file(&dir.path().join("jwt.key")).unwrap()))
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
