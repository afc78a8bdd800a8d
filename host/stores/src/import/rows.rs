//! A CSV row and its values, with a reason for each invalid value.

use chrono::DateTime;
use csv::StringRecord;
use nova_model::event::{self, ID_MAX, parse_digits};
use nova_model::time::UnixMs;

/// 2100-01-01T00:00:00Z.
const END_OF_TIMES_MS: UnixMs = 4_102_444_800_000;

/// The position of each column in a record.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// `None` for an optional column that is missing.
    places: Vec<(&'static str, Option<usize>)>,
    /// Number of fields that every record must have.
    pub fields: usize,
}

impl Columns {
    /// # Errors
    /// A required column is missing, a column is there twice, or lines end with `\r` alone, so that
    /// the header would be the whole file.
    pub fn from_header(
        header: &StringRecord,
        required: &[&'static str],
        optional: &[&'static str],
    ) -> Result<Self, String> {
        let place = |name: &str| header.iter().position(|field| field.trim() == name);
        let times = |name: &str| header.iter().filter(|field| field.trim() == name).count();
        if header.iter().any(|field| field.trim_end().contains('\r')) {
            return Err("the lines end with \\r; end them with \\n or \\r\\n".to_owned());
        }
        let mut known = required.iter().chain(optional);
        if let Some(name) = known.find(|name| times(name) > 1) {
            return Err(format!("the header has the column {name} more than once"));
        }
        let mut columns = Vec::with_capacity(required.len() + optional.len());
        for name in required {
            let place = place(name).ok_or_else(|| format!("the header has no column {name}"))?;
            columns.push((*name, Some(place)));
        }
        columns.extend(optional.iter().map(|name| (*name, place(name))));
        Ok(Self {
            places: columns,
            fields: header.len(),
        })
    }

    fn place(&self, column: &str) -> Option<usize> {
        self.places
            .iter()
            .find(|(name, _)| *name == column)
            .and_then(|(_, place)| *place)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub columns: &'a Columns,
    pub record: &'a StringRecord,
    /// The line in the file. The header is line 1.
    pub line: u64,
    /// The offset added to every time, in milliseconds.
    pub offset_ms: i64,
}

impl<'a> Row<'a> {
    /// Returns the text of a column, which is empty if the column is missing.
    pub fn text(&self, column: &str) -> &'a str {
        let Some(place) = self.columns.place(column) else {
            return "";
        };
        let field = self.record.get(place).unwrap_or("");
        // A file with `\r\n` leaves a `\r` at the end of each line.
        let last = place + 1 == self.columns.fields;
        if last {
            field.strip_suffix('\r').unwrap_or(field)
        } else {
            field
        }
    }

    pub fn id(&self, column: &str) -> Result<u64, String> {
        parse_id(self.text(column)).map_err(|reason| format!("{column}: {reason}"))
    }

    pub fn optional_id(&self, column: &str) -> Result<Option<u64>, String> {
        if self.text(column).is_empty() {
            Ok(None)
        } else {
            self.id(column).map(Some)
        }
    }

    /// Returns an unsigned number up to `max`, or `None` if the field is empty.
    pub fn optional_number(&self, column: &str, max: u64) -> Result<Option<u64>, String> {
        let text = self.text(column);
        if text.is_empty() {
            return Ok(None);
        }
        match parse_digits(text) {
            Some(number) if number <= max => Ok(Some(number)),
            _ => Err(format!(
                "{column}: {text:?} is not a number from 0 to {max}"
            )),
        }
    }

    /// Returns the time in this column, moved by the offset.
    pub fn time_ms(&self, column: &str) -> Result<UnixMs, String> {
        let text = self.text(column);
        let Some(at_ms) = parse_time_ms(text) else {
            return Err(format!(
                "{column}: {text:?} is not an RFC 3339 time from 1970 to 2099, such as 2026-01-31T12:00:00Z"
            ));
        };
        (i64::try_from(at_ms).ok())
            .and_then(|at_ms| at_ms.checked_add(self.offset_ms))
            .and_then(|moved| UnixMs::try_from(moved).ok())
            .ok_or_else(|| format!("{column}: {text} is before 1970 after the offset is added"))
    }
}

pub(super) fn parse_id(text: &str) -> Result<u64, String> {
    event::parse_id(text).ok_or_else(|| format!("{text:?} is not an id from 1 to {ID_MAX}"))
}

/// Converts RFC 3339 to milliseconds. Returns `None` for anything else and for times outside of
/// 1970 to 2099. The hours and days of ClickHouse end in 2106, and a later time would wrap around
/// to 1970.
pub(super) fn parse_time_ms(text: &str) -> Option<UnixMs> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    let time_ms = UnixMs::try_from(time.timestamp_millis()).ok()?;
    (time_ms < END_OF_TIMES_MS).then_some(time_ms)
}
