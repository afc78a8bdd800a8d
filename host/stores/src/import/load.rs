//! Loading of one file: its rows are read and staged one by one, then its target checks and
//! loads them as a whole.

use super::files::ImportFile;
use super::source::{ROWS_PER_STATEMENT, Source};
use super::{FileSummary, ImportError, ImportProgress};
use crate::ports::{BadRow, FileLoad, ImportTarget, Loaded, Shift, StoreResult};
use csv::ByteRecord;
use std::path::Path;

/// Result of reading a file. Its rows are staged up to the first one that could not be read.
#[derive(Debug)]
struct Staged {
    rows_read: u64,
    unreadable: Option<BadRow>,
}

/// Loads the whole file, or nothing of it.
pub(super) async fn load_file(
    target: &dyn ImportTarget,
    file: &'static ImportFile,
    path: &Path,
    shift: &Shift,
    progress: &mut (dyn FnMut(ImportProgress) + Send),
) -> Result<FileSummary, ImportError> {
    let mut source = Source::open(file, path, shift.offset_ms)?;
    let load = async {
        let mut load = target.begin(file.kind).await?;
        let staged = stage(&mut *load, &mut source, progress).await?;
        let loaded = load.finish(staged.unreadable, shift).await?;
        Ok((staged.rows_read, loaded))
    };
    let outcome = load
        .await
        .map_err(|error| ImportError::store(file.name, error))?;
    match outcome {
        (_, Loaded::Refused(bad)) => Err(ImportError::bad_row(file.name, bad.line, bad.reason)),
        (rows_read, Loaded::Rows { new }) => Ok(FileSummary {
            file: file.name,
            rows_read,
            rows_new: new,
            rows_already_there: rows_read - new,
        }),
    }
}

async fn stage(
    load: &mut dyn FileLoad,
    source: &mut Source,
    progress: &mut (dyn FnMut(ImportProgress) + Send),
) -> StoreResult<Staged> {
    let mut record = ByteRecord::new();
    let mut rows_read = 0;
    loop {
        let (json, rows, unreadable) = source.next_rows(&mut record);
        if rows > 0 {
            load.stage(json).await?;
            rows_read += rows;
        }
        progress(ImportProgress {
            file: source.file.name,
            rows_done: rows_read,
            bytes_done: source.bytes_done(),
            bytes_total: source.bytes_total,
        });
        if unreadable.is_some() || rows < ROWS_PER_STATEMENT as u64 {
            return Ok(Staged {
                rows_read,
                unreadable,
            });
        }
    }
}
