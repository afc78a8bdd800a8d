//! The writes of an import outside PostgreSQL: the captured tables and the events in
//! ClickHouse, and the posts that imported events mark as seen.

use super::rows;
use crate::clickhouse::{CdcRow, ClickHouseStore, ImportedEvent};
use crate::guard::Failure;
use crate::ports::{FileKind, SeenPosts, StoreError};
use futures::TryStreamExt as _;
use nova_model::event::Action;
use nova_model::time::DAY_MS;
use nova_support::clock::unix_ms;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection};
use std::sync::Arc;

const ROWS_PER_INSERT: usize = 10_000;

pub(super) struct History {
    clickhouse: ClickHouseStore,
    seen: Arc<dyn SeenPosts>,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History").finish_non_exhaustive()
    }
}

impl History {
    pub fn new(clickhouse: ClickHouseStore, seen: Arc<dyn SeenPosts>) -> Self {
        Self { clickhouse, seen }
    }

    /// Writes the data that follows from the staged rows of a file. At this point only the new
    /// rows are staged.
    pub async fn write(&self, staged: &mut PgConnection, kind: FileKind) -> Result<(), Failure> {
        match kind {
            FileKind::Users => self.copy(staged, rows::USERS, rows::user).await,
            FileKind::Posts => {
                self.copy(staged, rows::POSTS, rows::post).await?;
                self.happened(staged, rows::VIEW_COUNTS).await
            }
            FileKind::Follows => self.copy(staged, rows::FOLLOWS, rows::follow).await,
            FileKind::Comments => {
                self.copy(staged, rows::COMMENTS, rows::comment).await?;
                self.happened(staged, rows::COMMENT_EVENTS).await
            }
            FileKind::Likes => {
                self.copy(staged, rows::LIKES, rows::like).await?;
                self.happened(staged, rows::LIKE_EVENTS).await
            }
            FileKind::Events => self.happened(staged, rows::EVENTS).await,
        }
    }

    /// Copies the staged rows. A row that is copied again replaces itself.
    async fn copy<T, R: CdcRow>(
        &self,
        staged: &mut PgConnection,
        select: &'static str,
        row: fn(T) -> R,
    ) -> Result<(), Failure>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let selected = sqlx::query_as(select).fetch(staged).map_ok(row);
        let mut chunks = selected.try_chunks(ROWS_PER_INSERT);
        while let Some(rows) = chunks.try_next().await.map_err(|error| error.1)? {
            self.clickhouse.insert_cdc(&rows).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn happened(
        &self,
        staged: &mut PgConnection,
        select: &'static str,
    ) -> Result<(), Failure> {
        let selected = sqlx::query_as(select).fetch(staged);
        let events = selected
            .map_err(Failure::from)
            .and_then(async |row| rows::event(row));
        let mut chunks = std::pin::pin!(events.try_chunks(ROWS_PER_INSERT));
        while let Some(events) = chunks.try_next().await.map_err(|error| error.1)? {
            self.clickhouse
                .insert_imported(&events)
                .await
                .map_err(failed)?;
            self.mark_seen(&events).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn mark_seen(&self, events: &[ImportedEvent]) -> Result<(), StoreError> {
        let since_ms = unix_ms().saturating_sub(DAY_MS);
        let shown = events
            .iter()
            .map(|imported| &imported.event)
            .filter(|event| {
                matches!(event.action, Action::Impression | Action::View)
                    && event.user_id != 0
                    && event.accepted_ms > since_ms
            });
        for event in shown {
            self.seen
                .mark(event.user_id, &[event.post_id], event.accepted_ms)
                .await?;
        }
        Ok(())
    }
}

fn failed(error: StoreError) -> Failure {
    Failure {
        retryable: error.retryable,
        source: error.into(),
    }
}
