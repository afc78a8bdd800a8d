//! Parsing of a statement from a request of ClickHouse's HTTP interface: from the URL, the body,
//! or a form.

use anyhow::{Context as _, bail, ensure};
use axum::extract::{FromRequest as _, Multipart, Query, Request};
use axum::http::header::CONTENT_TYPE;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;

/// URL parameters that are neither settings nor the query. They have no effect here, because
/// there are no users or sessions.
const IGNORED: [&str; 9] = [
    "user",
    "password",
    "query_id",
    "quota_key",
    "session_id",
    "session_timeout",
    "role",
    "wait_end_of_query",
    "stacktrace",
];
/// URL parameters that would change the bytes on the wire, which this front does not support.
const REFUSED: [&str; 2] = ["compress", "decompress"];

const PARAM: &str = "param_";
/// Longest parameter, like the server's `http_max_field_value_size`.
const PARAM_BYTES_MAX: usize = 128 << 10;

#[derive(Debug, Default)]
pub struct Statement {
    pub sql: String,
    /// Data of an INSERT, in the format that its text names.
    pub data: Bytes,
    pub format: String,
    pub database: String,
    /// Server-side parameters, without the prefix `param_`.
    pub params: Vec<(String, String)>,
    pub settings: BTreeMap<String, String>,
}

/// Reads a whole request.
///
/// # Errors
/// If a ClickHouse client would not send such a request.
pub async fn read(request: Request) -> anyhow::Result<Statement> {
    let mut statement = Statement {
        format: "TabSeparated".to_owned(),
        database: "default".to_owned(),
        ..Statement::default()
    };
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(request.uri())?;
    for (name, value) in pairs {
        statement.take(name, value)?;
    }
    if let Some(database) = request.headers().get("X-ClickHouse-Database") {
        statement.database = database.to_str()?.to_owned();
    }
    let is_form = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"multipart/form-data"));
    if is_form {
        let mut form = Multipart::from_request(request, &()).await?;
        while let Some(field) = form.next_field().await? {
            let name = field.name().context("a field without a name")?.to_owned();
            statement.take(name, field.text().await?)?;
        }
    } else {
        let body = Bytes::from_request(request, &()).await?;
        statement.take_body(body)?;
    }
    ensure!(
        !statement.sql.trim().is_empty(),
        "Code: 62. DB::Exception: Empty query. (SYNTAX_ERROR)"
    );
    Ok(statement)
}

impl Statement {
    fn take(&mut self, name: String, value: String) -> anyhow::Result<()> {
        if let Some(param) = name.strip_prefix(PARAM) {
            ensure!(
                value.len() <= PARAM_BYTES_MAX,
                "HTML Form Exception: Field value too long: {name}"
            );
            self.params.push((param.to_owned(), value));
            return Ok(());
        }
        match name.as_str() {
            "query" => self.sql = value,
            "database" => self.database = value,
            "default_format" => self.format = value,
            name if IGNORED.contains(&name) => {}
            name if REFUSED.contains(&name) => {
                ensure!(value == "0", "{name}: this front does not compress");
            }
            _ => {
                // The name becomes part of a SET statement.
                let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
                ensure!(
                    name.bytes().all(is_name),
                    "Code: 115. DB::Exception: Unknown setting '{name}'. (UNKNOWN_SETTING)"
                );
                self.settings.insert(name, value);
            }
        }
        Ok(())
    }

    /// Takes a body. It is the whole statement, the continuation of the URL's statement, or the
    /// data of that statement.
    fn take_body(&mut self, body: Bytes) -> anyhow::Result<()> {
        if names_format_last(self.sql.as_bytes()) {
            self.data = body;
            return Ok(());
        }
        let mut whole = BytesMut::from(self.sql.as_bytes());
        if !self.sql.is_empty() && !body.is_empty() {
            whole.extend_from_slice(b"\n");
        }
        whole.extend_from_slice(&body);
        let mut whole = whole.freeze();
        let line_end = whole.iter().position(|byte| *byte == b'\n');
        if let Some(end) = line_end.filter(|end| names_format_last(&whole[..*end])) {
            self.data = whole.split_off(end + 1);
            whole.truncate(end);
        }
        match String::from_utf8(whole.into()) {
            Ok(sql) => self.sql = sql,
            Err(_) => {
                bail!("the statement is not UTF-8; binary data follows the line of its INSERT")
            }
        }
        Ok(())
    }
}

/// True for an INSERT that ends with `FORMAT Name`, so that data follows.
fn names_format_last(sql: &[u8]) -> bool {
    format_clause(sql).is_some()
}

/// Offset of the `FORMAT Name` that ends an INSERT.
pub fn format_clause(sql: &[u8]) -> Option<usize> {
    let sql = std::str::from_utf8(sql).ok()?;
    let is_insert = sql.trim_start().get(..6)?.eq_ignore_ascii_case("insert");
    let (before, name) = sql.trim_end().rsplit_once(char::is_whitespace)?;
    let before = before.trim_end();
    let start = before.len().checked_sub(6)?;
    let keyword = before.get(start..)?.eq_ignore_ascii_case("format");
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_insert && keyword && is_name && !name.eq_ignore_ascii_case("values")).then_some(start)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::{Bytes, Statement};

    fn with_body(url_sql: &str, body: &'static [u8]) -> Statement {
        let mut statement = Statement {
            sql: url_sql.to_owned(),
            ..Statement::default()
        };
        statement.take_body(Bytes::from_static(body)).unwrap();
        statement
    }

    #[test]
    fn the_data_of_an_insert_follows_its_format_anywhere_in_the_body() {
        let binary = b"\n\n\xff";
        let in_url = with_body("INSERT INTO t(`a`) FORMAT RowBinary", binary);
        assert_eq!(in_url.data.as_ref(), binary);
        let in_body = with_body("", b"insert into t format RowBinary\n\n\n\xff");
        assert_eq!(in_body.sql, "insert into t format RowBinary");
        assert_eq!(in_body.data.as_ref(), binary);
    }

    #[test]
    fn a_body_without_data_is_parsed_as_the_statement() {
        let select = with_body("", b"SELECT 1\nFORMAT CSV");
        assert_eq!(select.sql, "SELECT 1\nFORMAT CSV");
        let values = with_body("INSERT INTO t VALUES", b"(1)");
        assert_eq!(values.sql, "INSERT INTO t VALUES\n(1)");
        assert!(values.data.is_empty());
    }
}
