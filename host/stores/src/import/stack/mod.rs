//! Import into the real stack: writes the rows to PostgreSQL, and the data that follows from
//! them to ClickHouse.
//!
//! PostgreSQL's transaction stays open until ClickHouse has everything, so a file whose history
//! could not be written is not loaded. ClickHouse identifies the rows that it received by then
//! by their own ids, so they add nothing when the file is loaded again. The rows reach
//! ClickHouse a second time by change data capture. The rows written here have version 0, so
//! every captured change outranks them.

mod history;
mod rows;
mod statements;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

use super::files::ImportFile;
use super::staging::{StagingTables, first_bad, insert_new};
use crate::StackUrls;
use crate::clickhouse::ClickHouseStore;
use crate::guard::{Failure, Guard};
use crate::ports::{
    BadRow, FileKind, FileLoad, ImportTarget, Loaded, SeenPosts, Shift, StoreResult,
};
use crate::postgres;
use crate::postgres::to_sql;
use crate::redis;
use crate::redis::Redis;
use crate::redis::seen::RedisSeen;
use async_trait::async_trait;
use history::History;
use nova_model::time::UnixMs;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use sqlx::{Connection as _, PgConnection, Postgres};
use statements::Statements;
use std::sync::Arc;
use std::time::Duration;

const STAGE_SCHEMA: &str = include_str!("stage.sql");

/// Maximum duration of a single step, including the last step of a file with millions of rows.
const TIMEOUT: Duration = Duration::from_secs(15 * 60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One connection for the current file, and one for queries outside its transaction.
const CONNECTIONS_MAX: u32 = 2;
/// Timeout for marking posts as seen. No viewer waits for it.
const SEEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Makes imports run one after the other, because each decides by the rows that it finds.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtext('nova import'))";

#[derive(Debug)]
pub struct StackTarget {
    pool: PgPool,
    guard: Guard,
    history: Arc<History>,
}

impl StackTarget {
    /// Creates the target without connecting.
    ///
    /// # Errors
    /// If one of the URLs is invalid.
    pub fn connect(urls: StackUrls<'_>) -> anyhow::Result<Self> {
        let seen = Redis::with_guard(
            urls.redis,
            Guard::new(redis::STORE_NAME, SEEN_TIMEOUT),
            SEEN_TIMEOUT,
        )?;
        Self::new(
            urls.postgres,
            ClickHouseStore::connect(urls.clickhouse)?,
            Arc::new(RedisSeen::new(seen)),
        )
    }

    fn new(
        postgres_url: &str,
        clickhouse: ClickHouseStore,
        seen: Arc<dyn SeenPosts>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            pool: postgres::pool(postgres_url, CONNECTIONS_MAX, CONNECT_TIMEOUT, TIMEOUT)?,
            guard: Guard::new(postgres::STORE_NAME, TIMEOUT),
            history: Arc::new(History::new(clickhouse, seen)),
        })
    }
}

struct Load {
    pool: PgPool,
    guard: Guard,
    history: Arc<History>,
    /// The staging tables belong to the connection, so one connection serves the whole file.
    connection: PoolConnection<Postgres>,
    file: &'static ImportFile,
    statements: &'static Statements,
}

#[async_trait]
impl ImportTarget for StackTarget {
    async fn offset_ms(&self, newest_ms: UnixMs) -> StoreResult<Option<i64>> {
        let find = sqlx::query_scalar("SELECT offset_ms FROM import_offsets WHERE newest_ms = $1")
            .bind(to_sql(newest_ms));
        let found = async { Ok(find.fetch_optional(&self.pool).await?) };
        self.guard.run("import_offset", found).await
    }

    async fn begin(&self, file: FileKind) -> StoreResult<Box<dyn FileLoad>> {
        let connection = async {
            let mut connection = self.pool.acquire().await?;
            sqlx::raw_sql(STAGE_SCHEMA)
                .execute(&mut *connection)
                .await?;
            Ok(connection)
        };
        Ok(Box::new(Load {
            pool: self.pool.clone(),
            guard: self.guard.clone(),
            history: self.history.clone(),
            connection: self.guard.run("import_begin", connection).await?,
            file: ImportFile::from_kind(file),
            statements: Statements::from_kind(file),
        }))
    }
}

#[async_trait]
impl FileLoad for Load {
    async fn stage(&mut self, rows: String) -> StoreResult<()> {
        let stage = sqlx::query(self.statements.stage).bind(rows);
        let staged = async {
            stage.execute(&mut *self.connection).await?;
            Ok(())
        };
        self.guard.run("import_stage", staged).await
    }

    async fn finish(
        mut self: Box<Self>,
        unreadable: Option<BadRow>,
        shift: &Shift,
    ) -> StoreResult<Loaded> {
        let load = async {
            let mut tx = self.connection.begin().await?;
            StagingTables::execute(&mut *tx, LOCK).await?;
            for settle in self.statements.settle {
                StagingTables::execute(&mut *tx, settle).await?;
            }
            if let Some(bad) = first_bad(&mut *tx, self.file, unreadable).await? {
                return Ok(Loaded::Refused(bad));
            }
            let new = insert_new(&mut *tx, self.file, self.statements.insert).await?;
            // The offset is stored outside the transaction: ClickHouse keeps the rows that it
            // received, so the rest must be shifted by the same offset.
            remember(&self.pool, shift).await?;
            self.history.write(&mut tx, self.file.kind).await?;
            tx.commit().await?;
            Ok(Loaded::Rows { new })
        };
        self.guard.run("import_load", load).await
    }
}

#[async_trait]
impl StagingTables for PgConnection {
    type Error = Failure;

    async fn execute(&mut self, statement: &'static str) -> Result<u64, Failure> {
        Ok(sqlx::query(statement).execute(self).await?.rows_affected())
    }

    async fn find_bad(&mut self, check: &'static str) -> Result<Option<(i64, String)>, Failure> {
        Ok(sqlx::query_as(check).fetch_optional(self).await?)
    }
}

async fn remember(pool: &PgPool, shift: &Shift) -> Result<(), Failure> {
    let Some(newest_ms) = shift.newest_ms else {
        return Ok(());
    };
    let insert =
        "INSERT INTO import_offsets (newest_ms, offset_ms) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    sqlx::query(insert)
        .bind(to_sql(newest_ms))
        .bind(shift.offset_ms)
        .execute(pool)
        .await?;
    Ok(())
}
