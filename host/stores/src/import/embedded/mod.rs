//! Import into the embedded store. A file is first staged in a temporary table, which locks
//! nothing, so a running host waits only for the load itself.

mod statements;

use super::files::ImportFile;
use super::staging::{StagingTables, first_bad, insert_new};
use crate::embedded::{EmbeddedStore, aggregate_after, last_event_row, to_sql};
use crate::ports::{BadRow, FileKind, FileLoad, ImportTarget, Loaded, Shift, StoreResult};
use async_trait::async_trait;
use nova_model::time::UnixMs;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Sqlite, SqliteConnection};
use statements::Statements;

const STAGE_SCHEMA: &str = include_str!("stage.sql");

struct Load {
    store: EmbeddedStore,
    /// The staging tables belong to the connection, so one connection serves the whole file.
    connection: PoolConnection<Sqlite>,
    file: &'static ImportFile,
    statements: &'static Statements,
}

#[async_trait]
impl ImportTarget for EmbeddedStore {
    async fn offset_ms(&self, newest_ms: UnixMs) -> StoreResult<Option<i64>> {
        self.observed("import_offset", async {
            let sql = "SELECT offset_ms FROM import_offsets WHERE newest_ms = ?1";
            let find = sqlx::query_scalar(sql).bind(to_sql(newest_ms));
            Ok(find.fetch_optional(self.reader()).await?)
        })
        .await
    }

    async fn begin(&self, file: FileKind) -> StoreResult<Box<dyn FileLoad>> {
        let connection = self.observed("import_begin", async {
            let mut connection = self.writer().acquire().await?;
            sqlx::raw_sql(STAGE_SCHEMA)
                .execute(&mut *connection)
                .await?;
            Ok(connection)
        });
        Ok(Box::new(Load {
            store: self.clone(),
            connection: connection.await?,
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
        self.store.observed("import_stage", staged).await
    }

    async fn finish(
        mut self: Box<Self>,
        unreadable: Option<BadRow>,
        shift: &Shift,
    ) -> StoreResult<Loaded> {
        let load = async {
            let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
            if let Some(bad) = first_bad(&mut *tx, self.file, unreadable).await? {
                return Ok(Loaded::Refused(bad));
            }
            let new = load_staged(&mut tx, self.file, self.statements).await?;
            remember(&mut tx, shift).await?;
            tx.commit().await?;
            Ok(Loaded::Rows { new })
        };
        self.store.observed("import_load", load).await
    }
}

#[async_trait]
impl StagingTables for SqliteConnection {
    type Error = sqlx::Error;

    async fn execute(&mut self, statement: &'static str) -> Result<u64, sqlx::Error> {
        Ok(sqlx::query(statement).execute(self).await?.rows_affected())
    }

    async fn find_bad(
        &mut self,
        check: &'static str,
    ) -> Result<Option<(i64, String)>, sqlx::Error> {
        sqlx::query_as(check).fetch_optional(self).await
    }
}

async fn load_staged(
    connection: &mut SqliteConnection,
    file: &ImportFile,
    statements: &Statements,
) -> Result<u64, sqlx::Error> {
    let events_before = last_event_row(connection).await?;
    let new = insert_new(connection, file, statements.insert).await?;
    for effect in statements.effects {
        StagingTables::execute(connection, effect).await?;
    }
    // Only events.csv adds raw events. For the other files this adds nothing.
    aggregate_after(connection, events_before).await?;
    Ok(new)
}

async fn remember(connection: &mut SqliteConnection, shift: &Shift) -> Result<(), sqlx::Error> {
    let Some(newest_ms) = shift.newest_ms else {
        return Ok(());
    };
    let insert =
        "INSERT INTO import_offsets (newest_ms, offset_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    sqlx::query(insert)
        .bind(to_sql(newest_ms))
        .bind(shift.offset_ms)
        .execute(connection)
        .await?;
    Ok(())
}
