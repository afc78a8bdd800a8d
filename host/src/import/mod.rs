//! The core of `nova import DIR`: six CSV files become rows and aggregates.
//!
//! Files are loaded in the order of their references, each in one transaction: a bad row leaves
//! its file unloaded, the files before it stay. Reading and its errors are the same wherever the
//! rows go; `target` says what a store has to do.

mod embedded;
mod error;
mod files;
mod load;
mod offset;
mod rows;
mod source;
mod stack;
mod target;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

pub use error::ImportError;
pub use stack::StackTarget;
pub use target::ImportTarget;

use crate::stores::UnixMs;
use files::{FILES, ImportFile};
use offset::Shift;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportOptions {
    /// Moves all times by one offset, so that the newest time of all files is `now_ms`. Files
    /// whose newest time was imported before get the offset of then, so that they add nothing.
    pub shift_to_now: bool,
    pub now_ms: UnixMs,
}

/// How far the file at hand is. Rows are counted while they are read; they are loaded at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub file: &'static str,
    pub rows_done: u64,
    pub bytes_done: u64,
    pub bytes_total: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImportSummary {
    /// In the order of loading.
    pub files: Vec<FileSummary>,
    /// What was added to every time, in milliseconds; 0 without `--shift-to-now`.
    pub offset_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FileSummary {
    pub file: &'static str,
    pub rows_read: u64,
    pub rows_new: u64,
    pub rows_already_there: u64,
}

/// Loads those of the six files that are in `dir`.
///
/// Importing the same files again, from wherever, changes nothing: rows are known by their own
/// ids (a follow by its two ends). A row whose id is there already with other references (author,
/// post, user) is a bad row; other columns of a known row are left as they are.
///
/// # Errors
/// The first bad row as `FILE:LINE: reason`, a file that cannot be read, or a failing store. The
/// text says which files were loaded before.
pub async fn import_dir(
    target: &dyn ImportTarget,
    dir: &Path,
    options: &ImportOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
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
