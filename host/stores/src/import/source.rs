//! A file that is being read: its rows with their line numbers, parsed one by one.

use super::ImportError;
use super::files::ImportFile;
use super::quotes::{CheckedFile, Fault};
use super::rows::{Columns, Row};
use crate::ports::BadRow;
use csv::{ByteRecord, StringRecord};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Rows in one statement: enough that statements cost little compared to rows, few enough for a
/// smooth progress bar.
pub(super) const ROWS_PER_STATEMENT: usize = 4_000;

/// An open file with a valid header.
pub(super) struct Source {
    pub file: &'static ImportFile,
    reader: csv::Reader<CheckedFile>,
    columns: Columns,
    offset_ms: i64,
    pub bytes_total: u64,
    /// True if the file ends with a line break.
    ends_with_line_break: bool,
}

impl Source {
    pub fn open(
        file: &'static ImportFile,
        path: &Path,
        offset_ms: i64,
    ) -> Result<Self, ImportError> {
        let unreadable = |error| ImportError::unreadable(file.name, error);
        let mut opened = File::open(path).map_err(unreadable)?;
        let bytes_total = opened.metadata().map_err(unreadable)?.len();
        let ends_with_line_break = ends_with_line_break(&mut opened).map_err(unreadable)?;
        let mut reader = reader(opened);
        let header = reader.headers().cloned();
        let mut source = Self {
            file,
            reader,
            columns: Columns::default(),
            offset_ms,
            bytes_total,
            ends_with_line_break,
        };
        let bad_header = |reason| ImportError::bad_row(file.name, 1, reason);
        if let Some(fault) = source.fault(header.is_err()) {
            let reason = fault.reason.to_owned();
            return Err(ImportError::bad_row(file.name, fault.line, reason));
        }
        let header = header.map_err(|error| bad_header(csv_reason(&error)))?;
        source.columns =
            Columns::from_header(&header, file.required, file.optional).map_err(bad_header)?;
        Ok(source)
    }

    /// Returns the fault of the rows that were parsed so far. After a failed read, its fault counts
    /// too.
    fn fault(&self, read_failed: bool) -> Option<Fault> {
        let here = self.reader.position();
        let at_end = here.byte() == self.bytes_total;
        let fault = self.reader.get_ref().fault();
        fault.filter(|fault| read_failed || at_end || fault.line < here.line())
    }

    /// Returns the next rows as a JSON array, at most [`ROWS_PER_STATEMENT`], with their number
    /// and the row at which reading stopped, if it is bad.
    pub fn next_rows(&mut self, record: &mut ByteRecord) -> (String, u64, Option<BadRow>) {
        let mut json = String::from("[");
        let mut rows = 0;
        let mut bad = None;
        while rows < ROWS_PER_STATEMENT {
            match self.next_row(record) {
                Ok(None) => break,
                Ok(Some(row)) => {
                    if rows > 0 {
                        json.push(',');
                    }
                    json.push_str(&row);
                    rows += 1;
                }
                Err(reason) => {
                    bad = Some(reason);
                    break;
                }
            }
        }
        json.push(']');
        (json, rows as u64, bad)
    }

    pub fn bytes_done(&self) -> u64 {
        self.reader.position().byte()
    }

    fn next_row(&mut self, record: &mut ByteRecord) -> Result<Option<String>, BadRow> {
        loop {
            let more = self.reader.read_byte_record(record);
            let line = self.line_of(record);
            if let Some(fault) = self.fault(more.is_err()) {
                return Err(BadRow {
                    line: fault.line,
                    reason: fault.reason.to_owned(),
                });
            }
            if !more.map_err(|error| BadRow {
                line,
                reason: csv_reason(&error),
            })? {
                return Ok(None);
            }
            if record.len() == 1 && record.as_slice() == b"\r" {
                continue; // An empty line; without the `\r` the reader skips it by itself.
            }
            return self
                .parse(record, line)
                .map(Some)
                .map_err(|reason| BadRow { line, reason });
        }
    }

    fn parse(&self, record: &mut ByteRecord, line: u64) -> Result<String, String> {
        let expected = self.columns.fields;
        if record.len() != expected {
            return Err(format!(
                "{} fields where the header has {expected}",
                record.len()
            ));
        }
        if record.as_slice().contains(&0) {
            return Err("the row contains a NUL character".to_owned());
        }
        let text = StringRecord::from_byte_record(std::mem::take(record))
            .map_err(|_| "the row is not UTF-8".to_owned())?;
        let row = Row {
            columns: &self.columns,
            record: &text,
            line,
            offset_ms: self.offset_ms,
        };
        let parsed = (self.file.parse)(&row);
        *record = text.into_byte_record();
        parsed
    }

    /// Returns the line on which the last record begins: the reader's current line, minus the
    /// line breaks inside the record and the one that ended it. (The reader's own position of a
    /// record counts from the empty lines before it.)
    fn line_of(&self, record: &ByteRecord) -> u64 {
        let here = self.reader.position();
        let at_end = here.byte() == self.bytes_total;
        let ended = u64::from(!at_end || self.ends_with_line_break);
        let inside = record
            .as_slice()
            .iter()
            .filter(|byte| **byte == b'\n')
            .count() as u64;
        here.line().saturating_sub(inside + ended)
    }
}

/// Returns a reader of CSV for the files of an import.
pub(super) fn reader(file: File) -> csv::Reader<CheckedFile> {
    // Only `\n` ends a record. With the usual terminators, the reader leaves the `\n` of a `\r\n`
    // for the next record, and its line numbers drift. The `\r` is stripped from the last field.
    // The number of fields is checked by `Source`, which knows the line.
    csv::ReaderBuilder::new()
        .terminator(csv::Terminator::Any(b'\n'))
        .flexible(true)
        .from_reader(CheckedFile::new(file))
}

fn ends_with_line_break(file: &mut File) -> io::Result<bool> {
    let mut last = [0];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        file.rewind()?;
    }
    Ok(last == *b"\n")
}

fn csv_reason(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "the row is not UTF-8".to_owned(),
        _ => error.to_string(),
    }
}
