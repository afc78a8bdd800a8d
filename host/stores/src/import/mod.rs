//! The core of `nova import DIR`: converts six CSV files to rows and aggregates.
//!
//! Files are loaded in the order of their references, each in one transaction. If a row is bad,
//! its file is not loaded, and the files before it stay loaded. Reading and its errors are the
//! same for every store. The port `ImportTarget` defines the operations of a store.

mod embedded;
mod error;
mod files;
mod load;
mod offset;
mod quotes;
mod rows;
mod source;
mod stack;
mod staging;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

pub use error::ImportError;
pub use stack::StackTarget;

use crate::ports::{ImportTarget, Shift};
use files::{FILES, ImportFile};
use nova_model::time::UnixMs;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportOptions {
    /// Moves all times by one offset, so that the newest time of all files becomes `now_ms`. If
    /// files with this newest time were imported before, they get the same offset again, so
    /// that they add nothing.
    pub shift_to_now: bool,
    pub now_ms: UnixMs,
}

/// ImportProgress in the current file. Rows are counted while they are read, and loaded at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportProgress {
    pub file: &'static str,
    pub rows_done: u64,
    pub bytes_done: u64,
    pub bytes_total: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImportSummary {
    /// The files in the order in which they were loaded.
    pub files: Vec<FileSummary>,
    /// The offset added to every time, in milliseconds. It is 0 without `--shift-to-now`.
    pub offset_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FileSummary {
    pub file: &'static str,
    pub rows_read: u64,
    pub rows_new: u64,
    pub rows_already_there: u64,
}

/// Loads each of the six files that exists in `dir`.
///
/// Importing the same files again, from any path, changes nothing: rows are identified by their
/// own ids (a follow by its two users). A row whose id already exists with other references
/// (author, post, user) is a bad row. Other columns of a known row are left unchanged.
///
/// # Errors
/// The first bad row as `FILE:LINE: reason`, a file that cannot be read, or a failing store.
/// The text names the files that were loaded before.
pub async fn import_dir(
    target: &dyn ImportTarget,
    dir: &Path,
    options: &ImportOptions,
    progress: &mut (dyn FnMut(ImportProgress) + Send),
) -> Result<ImportSummary, ImportError> {
    let files = present_files(dir)?;
    let shift = Shift::choose(target, &files, options).await?;
    let mut summary = ImportSummary {
        files: Vec::new(),
        offset_ms: shift.offset_ms,
    };
    for (file, path) in &files {
        match load::load_file(target, file, path, &shift, progress).await {
            Ok(loaded) => summary.files.push(loaded),
            Err(error) => return Err(error.after(&summary.files)),
        }
    }
    Ok(summary)
}

fn present_files(dir: &Path) -> Result<Vec<(&'static ImportFile, PathBuf)>, ImportError> {
    let all = FILES.iter().map(|file| (file, dir.join(file.name)));
    let files: Vec<_> = all.filter(|(_, path)| path.is_file()).collect();
    if files.is_empty() {
        return Err(ImportError::NothingToImport(dir.to_owned()));
    }
    Ok(files)
}
