//! Files that a host stores for its own use. They are written completely or not at all, even if
//! the power fails, and a digest detects damaged content.

use anyhow::Context as _;
use nova_model::artifact::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Reason why an existing file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// The file could not be read now. A later attempt may succeed, because the content may be
    /// intact.
    #[error("{}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
}

/// Replaces a file atomically. A reader sees the old file or the new one.
///
/// # Errors
/// Fails if the disk write fails.
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

/// Writes a value as JSON. The first line of the file is the digest of the JSON text.
///
/// # Errors
/// The same as for [`write()`].
pub async fn write_json(path: PathBuf, value: &impl Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_string(value)?;
    let text = format!("{}\n{json}", Digest::from_content(json.as_bytes()));
    write(path, text.into_bytes()).await
}

/// Reads a file that [`write_json`] wrote. Returns `None` if there is no such file.
///
/// # Errors
/// Fails if the file cannot be read, or if its content is damaged.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Unread> {
    let damaged = || Unread::Damaged(path.to_owned());
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound => return Ok(None),
            // The file is not valid UTF-8.
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
    if digest.parse() != Ok(Digest::from_content(json.as_bytes())) {
        return Err(damaged());
    }
    serde_json::from_str(json).map(Some).map_err(|_| damaged())
}

/// Reads a file like [`read_json`]. A damaged file is renamed to `NAME.damaged`, not
/// overwritten. The log then says what is `lost` with it.
///
/// # Errors
/// Fails if the file cannot be read, or if a damaged file cannot be renamed.
pub fn read_json_or_put_aside<T: DeserializeOwned>(
    path: &Path,
    lost: &'static str,
) -> anyhow::Result<Option<T>> {
    match read_json(path) {
        Err(damaged @ Unread::Damaged(_)) => {
            let aside = path.with_extension("damaged");
            std::fs::rename(path, &aside).with_context(|| damaged.to_string())?;
            tracing::error!(file = %aside.display(), lost, "a file is damaged; it was renamed, and the host continues without its content");
            Ok(None)
        }
        read => Ok(read?),
    }
}
