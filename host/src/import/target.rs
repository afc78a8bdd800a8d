//! Where an import goes: the embedded store, or the real stack. A target stages rows, checks them by
//! the file's statements, and loads all of them or none.

use super::files::ImportFile;
use super::offset::Shift;
use crate::stores::{StoreResult, UnixMs};
use async_trait::async_trait;

#[async_trait]
pub trait ImportTarget: Send + Sync {
    /// The offset with which files of this newest time were loaded before.
    async fn offset_ms(&self, newest_ms: UnixMs) -> StoreResult<Option<i64>>;

    /// Begins a file, with nothing staged.
    async fn begin(&self, file: &'static ImportFile) -> StoreResult<Box<dyn FileLoad>>;
}

/// A file on its way. What was staged is seen by nobody else, and is gone when this is dropped.
#[async_trait]
pub trait FileLoad: Send {
    /// `rows`: a JSON array of parsed rows, in the order of their lines.
    async fn stage(&mut self, rows: String) -> StoreResult<()>;

    /// Checks the staged rows against each other and the store, and loads them if all are good.
    /// `unreadable`: the row at which reading stopped; a bad row above it is the one reported.
    async fn finish(
        self: Box<Self>,
        unreadable: Option<BadRow>,
        shift: &Shift,
    ) -> StoreResult<Loaded>;
}

/// A row that cannot be loaded, and why.
#[derive(Debug)]
pub struct BadRow {
    pub line: u64,
    pub reason: String,
}

impl BadRow {
    /// The one that comes first in the file. `found`: what a check returned.
    pub(super) fn first(bad: Option<Self>, found: Option<(i64, String)>) -> Option<Self> {
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
