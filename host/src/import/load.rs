//! One file: read and staged row by row, checked as a whole, loaded in one transaction.

use super::files::ImportFile;
use super::offset::Shift;
use super::rows::{Columns, Row};
use super::{FileSummary, ImportError, Progress};
use crate::stores::embedded::{EmbeddedStore, aggregate_after, last_event_row};
use csv::{ByteRecord, StringRecord};
use sqlx::{Connection as _, SqliteConnection};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

const STAGE_SCHEMA: &str = include_str!("stage.sql");

/// Large enough that statements cost nothing beside rows, small enough for a lively progress bar.
const ROWS_PER_STATEMENT: usize = 4_000;

/// A row that cannot be loaded, and why.
#[derive(Debug)]
struct BadRow {
    line: u64,
    reason: String,
}

/// What reading a file came to: its rows are staged, up to the first that could not be read.
#[derive(Debug)]
struct Staged {
    rows_read: u64,
    unreadable: Option<BadRow>,
}

#[derive(Debug)]
enum Loaded {
    Rows { new: u64 },
    Refused(BadRow),
}

/// Loads one file, or nothing of it.
pub(super) async fn load_file(
    store: &EmbeddedStore,
    file: &'static ImportFile,
    path: &Path,
    shift: &Shift,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<FileSummary, ImportError> {
    let mut source = Source::open(file, path, shift.offset_ms)?;
    // The staging tables belong to the connection, so one connection sees the file through.
    let outcome = store
        .observed("import_file", async {
            let mut connection = store.writer().acquire().await?;
            sqlx::raw_sql(STAGE_SCHEMA)
                .execute(&mut *connection)
                .await?;
            let staged = stage(&mut connection, &mut source, progress).await?;
            let loaded = load_staged(&mut connection, file, staged.unreadable, shift).await?;
            Ok((staged.rows_read, loaded))
        })
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

/// An open file whose header was found good.
struct Source {
    file: &'static ImportFile,
    reader: csv::Reader<File>,
    columns: Columns,
    offset_ms: i64,
    bytes_total: u64,
    /// Whether the file ends with a line break.
    ends_with_line_break: bool,
}

impl Source {
    fn open(file: &'static ImportFile, path: &Path, offset_ms: i64) -> Result<Self, ImportError> {
        let unreadable = |error| ImportError::unreadable(file.name, error);
        let mut opened = File::open(path).map_err(unreadable)?;
        let bytes_total = opened.metadata().map_err(unreadable)?.len();
        let ends_with_line_break = ends_with_line_break(&mut opened).map_err(unreadable)?;
        // Only `\n` ends a record: with the usual terminators the reader leaves the `\n` of a
        // `\r\n` for the next record and its line numbers drift. The `\r` is stripped from the
        // last field. Lengths are checked here, where the line is known.
        let mut reader = csv::ReaderBuilder::new()
            .terminator(csv::Terminator::Any(b'\n'))
            .flexible(true)
            .from_reader(opened);
        let header = match reader.headers() {
            Ok(header) => header,
            Err(error) => return Err(ImportError::bad_row(file.name, 1, csv_reason(&error))),
        };
        let columns = Columns::of_header(header, file.required, file.optional).map_err(|name| {
            ImportError::bad_row(file.name, 1, format!("the header has no column {name}"))
        })?;
        Ok(Self {
            file,
            reader,
            columns,
            offset_ms,
            bytes_total,
            ends_with_line_break,
        })
    }

    /// The next rows as a JSON array, at most [`ROWS_PER_STATEMENT`], and how many they are.
    fn next_rows(&mut self, record: &mut ByteRecord) -> (String, u64, Option<BadRow>) {
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

    fn next_row(&mut self, record: &mut ByteRecord) -> Result<Option<String>, BadRow> {
        loop {
            let more = self.reader.read_byte_record(record);
            let line = self.line_of(record);
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
        let text = StringRecord::from_byte_record(std::mem::take(record))
            .map_err(|_| "not UTF-8".to_owned())?;
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

    /// The line on which the record that was just read begins: where the reader is now, less the
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
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

async fn stage(
    connection: &mut SqliteConnection,
    source: &mut Source,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Staged, sqlx::Error> {
    let mut record = ByteRecord::new();
    let mut rows_read = 0;
    loop {
        let (json, rows, unreadable) = source.next_rows(&mut record);
        if rows > 0 {
            sqlx::query(source.file.stage)
                .bind(json)
                .execute(&mut *connection)
                .await?;
            rows_read += rows;
        }
        progress(Progress {
            file: source.file.name,
            rows_done: rows_read,
            bytes_done: source.reader.position().byte(),
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

/// Checks the staged rows against each other and the store, and loads them if all are good.
/// `unreadable`: the row at which reading stopped; a bad row above it is the one reported.
async fn load_staged(
    connection: &mut SqliteConnection,
    file: &ImportFile,
    unreadable: Option<BadRow>,
    shift: &Shift,
) -> Result<Loaded, sqlx::Error> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut first_bad = unreadable;
    for check in file.checks {
        let found: Option<(i64, String)> = sqlx::query_as(*check).fetch_optional(&mut *tx).await?;
        let Some((line, reason)) = found else {
            continue;
        };
        let line = u64::try_from(line).unwrap_or(0);
        if first_bad.as_ref().is_none_or(|bad| line < bad.line) {
            first_bad = Some(BadRow { line, reason });
        }
    }
    if let Some(bad) = first_bad {
        return Ok(Loaded::Refused(bad));
    }
    sqlx::query(file.leave_out_known).execute(&mut *tx).await?;
    let events_before = last_event_row(&mut tx).await?;
    let new = sqlx::query(file.insert)
        .execute(&mut *tx)
        .await?
        .rows_affected();
    for effect in file.effects {
        sqlx::query(*effect).execute(&mut *tx).await?;
    }
    // Raw events are there after events.csv alone; for the other files this adds nothing.
    aggregate_after(&mut tx, events_before).await?;
    shift.remember(&mut tx).await?;
    tx.commit().await?;
    Ok(Loaded::Rows { new })
}
