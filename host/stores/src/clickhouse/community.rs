//! The rows of the CDC tables, which change data capture writes.

use super::ClickHouseStore;
use crate::ports::StoreResult;
use clickhouse::{Row, RowOwned, RowWrite};
use serde::{Deserialize, Serialize};

/// A row of a CDC table. `version` is the position of the change in PostgreSQL's
/// log. The row with the highest version counts; if it is deleted, no row counts.
/// `created_at` is in milliseconds.
pub trait CdcRow: RowOwned + RowWrite + Send + Sync {
    const TABLE: &'static str;
}

macro_rules! cdc {
    ($($row:ident of $table:literal { $($column:ident: $type:ty),* $(,)? })*) => {$(
        #[doc = concat!("`", $table, "`")]
        #[derive(Debug, Clone, PartialEq, Eq, Row, Serialize, Deserialize)]
        pub struct $row {
            $(pub $column: $type,)*
            pub created_at: i64,
            pub version: u64,
            pub is_deleted: u8,
        }

        impl CdcRow for $row {
            const TABLE: &'static str = $table;
        }
    )*};
}

cdc! {
    UserRow of "users" {
        user_id: u64,
        username: String,
        avatar_url: String,
        bio: String,
        country: String,
        language: String,
    }
    PostRow of "posts" { post_id: u64, author_id: u64 }
    FollowRow of "follows" { follower_id: u64, following_id: u64 }
    CommentRow of "comments" { comment_id: u64, post_id: u64, user_id: u64 }
    LikeRow of "likes" { like_id: u64, post_id: u64, user_id: u64 }
}

impl ClickHouseStore {
    /// Writes changes. Any order and any number of repeats give the same result, because the
    /// highest `version` counts.
    ///
    /// # Errors
    /// Fails if the server fails or refuses; a part of the rows may have been written.
    pub async fn insert_cdc<R: CdcRow>(&self, rows: &[R]) -> StoreResult<()> {
        let insert = self.insert(R::TABLE, rows, None);
        self.work_guard.run("insert_captured", insert).await
    }
}
