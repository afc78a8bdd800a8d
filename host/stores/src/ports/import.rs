//! Port: the destination of an import, the embedded store or the real stack. A target stages rows,
//! checks them with the file's statements, and loads all of them or none.

use super::StoreResult;
use async_trait::async_trait;
use nova_model::time::UnixMs;

/// The files of an import in the order of their references.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Users,
    Posts,
    Follows,
    Comments,
    Likes,
    Events,
}

/// The offset by which an import moves all times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shift {
    pub offset_ms: i64,
    /// The newest time under which the offset is remembered. `None` if no time is moved.
    pub newest_ms: Option<UnixMs>,
}

#[async_trait]
pub trait ImportTarget: Send + Sync {
    /// Returns the offset with which files of this newest time were loaded before.
    async fn offset_ms(&self, newest_ms: UnixMs) -> StoreResult<Option<i64>>;

    /// Begins a file with nothing staged.
    async fn begin(&self, file: FileKind) -> StoreResult<Box<dyn FileLoad>>;
}

/// The load of one file. Only this load sees its staged rows, and dropping it discards them.
#[async_trait]
pub trait FileLoad: Send {
    /// Stages `rows`, a JSON array of parsed rows in the order of their lines.
    async fn stage(&mut self, rows: String) -> StoreResult<()>;

    /// Checks the staged rows against each other and the store, and loads them if all are
    /// valid. `unreadable` is the row at which reading stopped. If a row before it is bad, that
    /// row is reported instead.
    async fn finish(
        self: Box<Self>,
        unreadable: Option<BadRow>,
        shift: &Shift,
    ) -> StoreResult<Loaded>;
}

/// A row that cannot be loaded, and the reason.
#[derive(Debug)]
pub struct BadRow {
    pub line: u64,
    pub reason: String,
}

impl BadRow {
    /// Returns the bad row that comes first in the file. `found` is the result of a check.
    pub(crate) fn first(bad: Option<Self>, found: Option<(i64, String)>) -> Option<Self> {
        let Some((line, reason)) = found else {
            return bad;
        };
        let line = u64::try_from(line).unwrap_or(0);
        match bad {
            Some(bad) if bad.line <= line => Some(bad),
            _ => Some(Self { line, reason }),
        }
    }
}

#[derive(Debug)]
pub enum Loaded {
    Rows { new: u64 },
    Refused(BadRow),
}
