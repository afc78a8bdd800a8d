//! Quotes in a CSV file. The CSV reader accepts a quote that is never closed and text after a
//! closed one, and then takes other rows for a part of a field. [`CheckedFile`] reads the same
//! bytes and remembers the first such fault, so that the row is refused.

use std::fs::File;
use std::io::{self, Read};

/// Longest row. Beyond it a quote is open by mistake, or the file is no CSV file.
pub(super) const ROW_BYTES_MAX: u64 = 1 << 20;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A place in a file where its quotes or rows are wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub line: u64,
    pub reason: &'static str,
}

const NEVER_CLOSED: &str =
    "a quote is opened and never closed; close it, and double each quote inside of a quoted field";
const TEXT_AFTER_QUOTE: &str =
    "text follows a closing quote; double each quote inside of a quoted field";
const ROW_TOO_LONG: &str =
    "the row is longer than 1 MiB; check that every quote in and before it is closed";

/// A file whose bytes are checked while they are read.
#[derive(Debug)]
pub(super) struct CheckedFile {
    file: File,
    scan: Scan,
}

impl CheckedFile {
    pub fn new(file: File) -> Self {
        Self {
            file,
            scan: Scan::default(),
        }
    }

    /// Returns the first fault of what was read so far, which is more than was parsed.
    pub fn fault(&self) -> Option<Fault> {
        self.scan.fault
    }
}

impl Read for CheckedFile {
    /// Fails within a row that is too long, so that nobody collects it in memory.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        match length {
            0 => self.scan.end(),
            _ => self.scan.push(&buffer[..length]),
        }
        if self.scan.row_bytes > ROW_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, ROW_TOO_LONG));
        }
        Ok(length)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    FieldStart,
    Unquoted,
    Quoted,
    /// Behind a quote inside of a quoted field: the end of the field, or half of a doubled quote.
    QuoteInQuoted,
    /// Behind a closed field and a `\r`, which may only be a part of the line break.
    ReturnAfterQuoted,
}

#[derive(Debug)]
struct Scan {
    place: Place,
    /// Number of bytes before the next one.
    position: usize,
    line: u64,
    row_bytes: u64,
    row_line: u64,
    /// Line of the last opening quote.
    quote_line: u64,
    fault: Option<Fault>,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            place: Place::FieldStart,
            position: 0,
            line: 1,
            row_bytes: 0,
            row_line: 1,
            quote_line: 1,
            fault: None,
        }
    }
}

impl Scan {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // The CSV reader skips a byte order mark too.
            if BYTE_ORDER_MARK.get(self.position) != Some(byte) || self.line > 1 {
                self.step(*byte);
            }
            self.position += 1;
        }
    }

    fn step(&mut self, byte: u8) {
        use Place::{FieldStart, QuoteInQuoted, Quoted, ReturnAfterQuoted, Unquoted};
        let is_break = byte == b'\n';
        self.row_bytes += 1;
        if self.row_bytes > ROW_BYTES_MAX {
            self.found(self.row_line, ROW_TOO_LONG);
        }
        self.place = match (self.place, byte) {
            (FieldStart, b'"') => {
                self.quote_line = self.line;
                Quoted
            }
            (Quoted, b'"') => QuoteInQuoted,
            (Quoted, _) | (QuoteInQuoted, b'"') => Quoted,
            (_, b',') if self.place != ReturnAfterQuoted => FieldStart,
            (_, b'\n') => FieldStart,
            (QuoteInQuoted, b'\r') => ReturnAfterQuoted,
            (QuoteInQuoted | ReturnAfterQuoted, _) => {
                self.found(self.line, TEXT_AFTER_QUOTE);
                Unquoted
            }
            (FieldStart | Unquoted, _) => Unquoted,
        };
        if is_break {
            self.line += 1;
            if self.place == FieldStart {
                self.row_bytes = 0;
                self.row_line = self.line;
            }
        }
    }

    fn end(&mut self) {
        if self.place == Place::Quoted {
            self.found(self.quote_line, NEVER_CLOSED);
        }
    }

    fn found(&mut self, line: u64, reason: &'static str) {
        self.fault.get_or_insert(Fault { line, reason });
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fault(text: &[u8]) -> Option<Fault> {
        let mut scan = Scan::default();
        // Byte by byte, so that no boundary between two reads matters.
        text.chunks(1).for_each(|byte| scan.push(byte));
        scan.end();
        scan.fault
    }

    #[test]
    fn a_wrong_quote_is_found_on_its_line() {
        for (text, line, reason) in [
            ("a,b\n1,\"open\n2,x\n3,y\n", 2, NEVER_CLOSED),
            ("a,b\n1,x\n\"two\nlines\",\"open", 4, NEVER_CLOSED),
            ("a,\"b\n1,x\n", 1, NEVER_CLOSED),
            ("\u{feff}\"a,b\n1,x\n", 1, NEVER_CLOSED),
            ("a,b\r\n1,\"open\r\n", 2, NEVER_CLOSED),
            ("a,b\n1,\"", 2, NEVER_CLOSED),
            ("a,b\n1,\"x\"\"\n2,y\n", 2, NEVER_CLOSED),
            ("a,b\n1,\"she said \"no\"\"\n", 2, TEXT_AFTER_QUOTE),
            ("a,b\n1,\"x\" \n", 2, TEXT_AFTER_QUOTE),
            ("a,b\n1,\"x\"\r2,y\n", 2, TEXT_AFTER_QUOTE),
        ] {
            assert_eq!(
                fault(text.as_bytes()),
                Some(Fault { line, reason }),
                "{text:?}"
            );
        }
    }

    #[test]
    fn correct_quotes_and_quotes_inside_of_plain_fields_are_no_fault() {
        for text in [
            "",
            "a,b",
            "\u{feff}\"a\",\"b\"\r\n\"1\",\"x\"\r\n",
            "a,b\n1,\"two\nlines, and \"\"quotes\"\"\"\n",
            "a,b\n1,\"\"\n",
            "a,b\n1,\"x\"",
            "a,b\n1,5'10\" tall\n",
            "a,b\n1, \"x\"\n",
        ] {
            assert_eq!(fault(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_row_without_an_end_is_found_where_it_begins() {
        let long = "x".repeat(ROW_BYTES_MAX as usize);
        let text = format!("a,b\n1,{long}\n");
        let expected = Fault {
            line: 2,
            reason: ROW_TOO_LONG,
        };
        assert_eq!(fault(text.as_bytes()), Some(expected));
        let text = format!("a,b\n1,\"\n{}\"\n", long.replace("xxxx", "x\nxx"));
        assert_eq!(fault(text.as_bytes()), Some(expected));
        let rows = "1,x\n".repeat(ROW_BYTES_MAX as usize);
        assert_eq!(fault(rows.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn what_a_csv_writer_writes_has_no_fault(rows in prop::collection::vec(prop::collection::vec("[ab\", \r\n\t]{0,6}", 3), 0..6), crlf: bool) {
            let terminator = if crlf { csv::Terminator::CRLF } else { csv::Terminator::Any(b'\n') };
            let mut writer = csv::WriterBuilder::new().terminator(terminator).from_writer(Vec::new());
            for row in &rows {
                writer.write_record(row).unwrap();
            }
            prop_assert_eq!(fault(&writer.into_inner().unwrap()), None);
        }
    }
}
