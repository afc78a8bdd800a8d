//! Rows and checksums by day of creation, to be compared with those of ClickHouse, and how far the
//! capture of changes is behind.

use anyhow::Context as _;
use nova_model::cdc::{Bucket, Table};
use sqlx::{Connection as _, PgConnection, Row as _};

/// Computes the same checksums as `clickhouse/checksums.rs`, over the rows that are not deleted.
macro_rules! checksums {
    ($from:literal, $columns:literal) => {
        concat!(
            "SELECT floor(extract(epoch FROM created_at) / 86400)::bigint AS day, count(*) AS rows, ",
            "mod(sum(('x' || left(md5(concat_ws('|', ",
            $columns,
            ", floor(extract(epoch FROM created_at) * 1000)::bigint)), 15))::bit(60)::bigint::numeric), 18446744073709551616)::text AS sum ",
            "FROM ",
            $from,
            " GROUP BY 1 ORDER BY 1"
        )
    };
}

/// One connection, which asks for checksums alone.
#[derive(Debug)]
pub struct Checksums(PgConnection);

impl Checksums {
    /// # Errors
    /// When PostgreSQL does not answer.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = PgConnection::connect(url)
            .await
            .context("PostgreSQL does not answer; check POSTGRES_URL")?;
        Ok(Self(connection))
    }

    /// Rows and checksums of each day of a table.
    ///
    /// # Errors
    /// When PostgreSQL does not answer.
    pub async fn table(&mut self, table: Table) -> anyhow::Result<Vec<Bucket>> {
        let rows = sqlx::query(query_of(table))
            .fetch_all(&mut self.0)
            .await
            .with_context(|| {
                format!(
                    "could not compute the checksums of table {} in PostgreSQL",
                    table.name()
                )
            })?;
        rows.iter()
            .map(|row| {
                Ok(Bucket {
                    day: row.try_get("day")?,
                    rows: row.try_get::<i64, _>("rows")? as u64,
                    sum: row.try_get::<&str, _>("sum")?.parse()?,
                })
            })
            .collect()
    }

    /// Bytes of log that the consumer of a replication slot has not confirmed. `None` without such
    /// a slot.
    ///
    /// # Errors
    /// When PostgreSQL does not answer.
    pub async fn slot_lag_bytes(&mut self, slot: &str) -> anyhow::Result<Option<i64>> {
        let lag = sqlx::query_scalar(
            "SELECT (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint FROM pg_replication_slots WHERE slot_name = $1",
        )
        .bind(slot)
        .fetch_optional(&mut self.0);
        Ok(lag.await?)
    }

    pub async fn close(self) {
        let _ = self.0.close().await;
    }
}

fn query_of(table: Table) -> &'static str {
    match table {
        Table::Users => checksums!(
            "users",
            "user_id, username, avatar_url, bio, country, language"
        ),
        Table::Posts => checksums!("posts WHERE NOT deleted", "post_id, author_id"),
        Table::Follows => checksums!("follows", "follower_id, following_id"),
        Table::Comments => checksums!("comments", "comment_id, post_id, user_id"),
        Table::Likes => checksums!("likes", "like_id, post_id, coalesce(user_id, 0)"),
    }
}
