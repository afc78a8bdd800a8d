//! Files that a host keeps for itself: written whole or not at all, also when the power goes, and not
//! believed when they are not as they were written.

use super::artifact::Digest;
use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Why a file that is there was not read.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// Perhaps another time: what is in it may be as it was written.
    #[error("{}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
}

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
/// When it cannot be read, or is not as it was written.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Unread> {
    let damaged = || Unread::Damaged(path.to_owned());
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound => return Ok(None),
            // Not text.
            std::io::ErrorKind::InvalidData => return Err(damaged()),
            _ => {
                let path = path.to_owned();
                return Err(Unread::Unreadable {
                    path,
                    source: error,
                });
            }
        },
    };
    let (digest, json) = text.split_once('\n').ok_or_else(damaged)?;
    if digest.parse() != Ok(Digest::of(json.as_bytes())) {
        return Err(damaged());
    }
    serde_json::from_str(json).map(Some).map_err(|_| damaged())
}

/// As [`read_json`]; a damaged file is put aside as `NAME.damaged`, not overwritten, and the log says what is `lost` with it.
///
/// # Errors
/// When the file cannot be read, or not be put aside.
pub fn read_json_or_put_aside<T: DeserializeOwned>(
    path: &Path,
    lost: &'static str,
) -> anyhow::Result<Option<T>> {
    match read_json(path) {
        Err(damaged @ Unread::Damaged(_)) => {
            let aside = path.with_extension("damaged");
            std::fs::rename(path, &aside).with_context(|| damaged.to_string())?;
            tracing::error!(file = %aside.display(), lost, "a damaged file was put aside");
            Ok(None)
        }
        read => Ok(read?),
    }
}
