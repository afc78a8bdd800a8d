//! The steps of a load that are the same in every engine, on the rows of one staged file.

use super::files::ImportFile;
use crate::ports::BadRow;
use async_trait::async_trait;

/// A connection of one engine, with the staging tables and the tables that they are loaded into.
#[async_trait]
pub(super) trait StagingTables: Send {
    type Error: Send;

    /// Runs a statement. Returns the number of rows that it changed.
    async fn execute(&mut self, statement: &'static str) -> Result<u64, Self::Error>;

    /// Runs a check. Returns the line and the reason of the first bad row.
    async fn find_bad(&mut self, check: &'static str)
    -> Result<Option<(i64, String)>, Self::Error>;
}

/// Runs the checks of a file. Returns the bad row that comes first, `unreadable` included.
pub(super) async fn first_bad<S: StagingTables + ?Sized>(
    staged: &mut S,
    file: &ImportFile,
    unreadable: Option<BadRow>,
) -> Result<Option<BadRow>, S::Error> {
    let mut first_bad = unreadable;
    for check in file.checks {
        let found = staged.find_bad(check).await?;
        first_bad = BadRow::first(first_bad, found);
    }
    Ok(first_bad)
}

/// Loads the rows that the store does not have yet. Returns their number.
pub(super) async fn insert_new<S: StagingTables + ?Sized>(
    staged: &mut S,
    file: &ImportFile,
    insert: &'static str,
) -> Result<u64, S::Error> {
    staged.execute(file.leave_out_known).await?;
    staged.execute(insert).await
}
