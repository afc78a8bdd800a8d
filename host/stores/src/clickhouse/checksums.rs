//! Checksums of the rows that change data capture wrote, in a form that PostgreSQL can compute
//! too; see `cdc::validate`.

use super::{ClickHouseStore, failure};
use crate::ports::StoreResult;
use clickhouse::Row;
use nova_model::cdc::Bucket;
use nova_model::cdc::Table;
use serde::Deserialize;

/// The query for a table's checksums. It sums the 60 high bits of each row's MD5, which fit a
/// signed number in PostgreSQL; sums wrap around at 2^64.
macro_rules! checksums {
    ($table:literal, $columns:literal) => {
        concat!(
            "SELECT intDiv(toUnixTimestamp64Milli(created_at), 86400000) AS day, count() AS rows, ",
            "sum(bitShiftRight(reinterpretAsUInt64(reverse(substring(MD5(concatWithSeparator('|', ",
            $columns,
            ", toString(toUnixTimestamp64Milli(created_at)))), 1, 8))), 4)) AS sum FROM ",
            $table,
            " FINAL WHERE is_deleted = 0 GROUP BY day ORDER BY day"
        )
    };
}

#[derive(Debug, Row, Deserialize)]
struct BucketRow {
    day: i64,
    rows: u64,
    sum: u64,
}

fn query(table: Table) -> &'static str {
    match table {
        Table::Users => checksums!(
            "users",
            "toString(user_id), username, avatar_url, bio, toString(country), toString(language)"
        ),
        Table::Posts => checksums!("posts", "toString(post_id), toString(author_id)"),
        Table::Follows => checksums!("follows", "toString(follower_id), toString(following_id)"),
        Table::Comments => checksums!(
            "comments",
            "toString(comment_id), toString(post_id), toString(user_id)"
        ),
        Table::Likes => checksums!(
            "likes",
            "toString(like_id), toString(post_id), toString(user_id)"
        ),
    }
}

impl ClickHouseStore {
    /// Number of rows and checksum for each day of creation.
    ///
    /// # Errors
    /// Fails if the server fails or refuses.
    pub async fn cdc_checksums(&self, table: Table) -> StoreResult<Vec<Bucket>> {
        let query = self.worker.query(query(table));
        let read = async {
            let rows = query.fetch_all::<BucketRow>().await.map_err(failure)?;
            let bucket = |row: BucketRow| Bucket {
                day: row.day,
                rows: row.rows,
                sum: row.sum,
            };
            Ok(rows.into_iter().map(bucket).collect())
        };
        self.work_guard.run("captured_checksums", read).await
    }
}
