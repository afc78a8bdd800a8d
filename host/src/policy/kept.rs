//! Files that a host keeps for itself: written whole or not at all, also when the power goes, and not
//! believed when they are not as they were written.

use super::artifact::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A file that is there, and is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged", .0.display())]
pub struct Damaged(pub PathBuf);

/// A reader sees the old file or the new one.
///
/// # Errors
/// When the disk does not take it.
pub async fn write(path: PathBuf, bytes: Vec<u8>) -> anyhow::Result<()> {
    let write = move || {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&bytes)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        std::fs::File::open(directory)?.sync_all()?;
        anyhow::Ok(())
    };
    tokio::task::spawn_blocking(write).await?
}

/// As JSON, behind the digest of it and a line break.
///
/// # Errors
/// As [`write()`].
pub async fn write_json(path: PathBuf, value: &impl Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_string(value)?;
    let text = format!("{}\n{json}", Digest::of(json.as_bytes()));
    write(path, text.into_bytes()).await
}

/// `None` when there is no such file.
///
/// # Errors
/// When it is not as it was written.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Damaged> {
    let damaged = || Damaged(path.to_owned());
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|_| damaged())?,
    };
    let (digest, json) = text.split_once('\n').ok_or_else(damaged)?;
    if digest.parse() != Ok(Digest::of(json.as_bytes())) {
        return Err(damaged());
    }
    serde_json::from_str(json).map(Some).map_err(|_| damaged())
}
