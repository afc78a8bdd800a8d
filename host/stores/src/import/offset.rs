//! The single offset by which `--shift-to-now` moves all times.
//!
//! The store remembers the offset under the newest time in the files, together with the first
//! file that loads. The same files therefore always get the same offset, from any path, even if
//! an import stopped at a bad row that was corrected later. Files that grew get a new offset
//! for their new rows. Two directories with the same newest time count as parts of one export,
//! which must move together.

use super::files::ImportFile;
use super::rows::parse_time_ms;
use super::source::reader;
use super::{ImportError, ImportOptions};
use crate::ports::{ImportTarget, Shift};
use nova_model::time::UnixMs;
use std::io;
use std::path::{Path, PathBuf};

impl Shift {
    pub(super) async fn choose(
        target: &dyn ImportTarget,
        files: &[(&'static ImportFile, PathBuf)],
        options: &ImportOptions,
    ) -> Result<Self, ImportError> {
        if !options.shift_to_now {
            return Ok(Self::default());
        }
        let mut newest_ms = None;
        for (file, path) in files {
            newest_ms = newest_ms.max(newest_time_ms(file, path)?);
        }
        let Some(newest_ms) = newest_ms else {
            return Ok(Self::default());
        };
        let remembered = target
            .offset_ms(newest_ms)
            .await
            .map_err(|error| ImportError::store("import_offsets", error))?;
        let offset_ms =
            remembered.unwrap_or(options.now_ms.cast_signed() - newest_ms.cast_signed());
        Ok(Self {
            offset_ms,
            newest_ms: Some(newest_ms),
        })
    }
}

/// Returns the newest time in the file. A value that is not a time is skipped, because loading
/// the file reports it with its line.
fn newest_time_ms(file: &ImportFile, path: &Path) -> Result<Option<UnixMs>, ImportError> {
    let unreadable = |error| ImportError::unreadable(file.name, error);
    let opened = std::fs::File::open(path).map_err(unreadable)?;
    let mut reader = reader(opened);
    let Some(header) = readable(reader.byte_headers()).map_err(unreadable)? else {
        return Ok(None);
    };
    let named = |field: &[u8]| field.trim_ascii() == file.time_column.as_bytes();
    let Some(place) = header.iter().position(named) else {
        return Ok(None);
    };
    let mut record = csv::ByteRecord::new();
    let mut newest_ms = None;
    while readable(reader.read_byte_record(&mut record)).map_err(unreadable)? == Some(true) {
        let text = record
            .get(place)
            .and_then(|field| std::str::from_utf8(field.trim_ascii()).ok());
        newest_ms = newest_ms.max(text.and_then(parse_time_ms));
    }
    Ok(newest_ms)
}

/// Returns `None` for rows that cannot be parsed, because loading the file reports them with their
/// line.
fn readable<T>(read: csv::Result<T>) -> io::Result<Option<T>> {
    match read.map_err(csv::Error::into_kind) {
        Ok(read) => Ok(Some(read)),
        Err(csv::ErrorKind::Io(error)) if error.kind() != io::ErrorKind::InvalidData => Err(error),
        Err(_) => Ok(None),
    }
}
