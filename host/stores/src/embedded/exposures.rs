//! Storage of the rankings that were served, and the queries that count them.

use super::daily::{DayTally, ServedRanking, ShownEvent};
use super::{EmbeddedStore, from_sql, to_sql};
use crate::ports::{ExposureStore, StoreResult};
use async_trait::async_trait;
use futures::TryStreamExt as _;
use nova_model::daily::DailyCounts;
use nova_model::exposure::{Exposure, VariationCount};
use nova_model::time::{DAY_MS, UnixMs};
use uuid::Uuid;

/// Time before the day in which rankings are searched for an event of that day. A snapshot
/// lives for minutes, and an event is at most a day old when it is accepted. A week also covers
/// a client that showed a stored page for days, and it bounds the rows read for each viewer.
const RANKING_LOOKBACK_MS: u64 = 7 * DAY_MS;

const RECORD: &str = "
INSERT INTO exposures (ranking_id, request_id, user_id, served_at_ms, served_by, policy,
                       effective_digest, experiment, variation, posts, degraded)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
ON CONFLICT (ranking_id) DO NOTHING";

const VARIATIONS: &str = "
SELECT variation, count(*), count(DISTINCT user_id)
FROM exposures
WHERE experiment = ?1 AND variation IS NOT NULL
GROUP BY variation
ORDER BY variation";

const ACTIVE: &str = "
SELECT user_id
FROM exposures
WHERE served_at_ms >= ?1
GROUP BY user_id
ORDER BY count(*) DESC, user_id
LIMIT ?2";

const SERVED_ON: &str = "
SELECT effective_digest, posts, degraded
FROM exposures
WHERE served_at_ms >= ?1 AND served_at_ms < ?2";

/// Reads only events that are counted: impressions, views, and events that have a dwell time.
/// The times are compared in whole seconds because the index stores them so, and a day begins
/// at a whole second.
const EVENTS_ON: &str = "
SELECT user_id, event_time_ms, post_id, action, dwell_ms, ranking_id
FROM events
WHERE event_time_ms / 1000 >= ?1 / 1000 AND event_time_ms / 1000 < ?2 / 1000
  AND (action IN ('impression', 'view') OR dwell_ms IS NOT NULL)
ORDER BY user_id";

const RANKINGS_OF: &str = "
SELECT ranking_id, served_at_ms, effective_digest, posts
FROM exposures
WHERE user_id = ?1 AND served_at_ms >= ?2 AND served_at_ms < ?3
ORDER BY served_at_ms DESC, ranking_id DESC";

type EventRow = (i64, i64, i64, String, Option<i64>, Option<Vec<u8>>);

impl EmbeddedStore {
    async fn tally_served(&self, tally: &mut DayTally, from_ms: UnixMs) -> anyhow::Result<()> {
        let mut rows = sqlx::query_as::<_, (String, String, String)>(SERVED_ON)
            .bind(to_sql(from_ms))
            .bind(to_sql(from_ms + DAY_MS))
            .fetch(self.reader());
        while let Some((digest, posts, degraded)) = rows.try_next().await? {
            let posts: Vec<(u64, String)> = serde_json::from_str(&posts)?;
            let degraded: Vec<String> = serde_json::from_str(&degraded)?;
            tally.add_ranking(&digest, &posts, degraded.is_empty());
        }
        Ok(())
    }

    /// Counts the events of the day. They come ordered by viewer, so only one viewer's rankings
    /// are in memory at a time.
    async fn tally_events(&self, tally: &mut DayTally, from_ms: UnixMs) -> anyhow::Result<()> {
        let mut rows = sqlx::query_as::<_, EventRow>(EVENTS_ON)
            .bind(to_sql(from_ms))
            .bind(to_sql(from_ms + DAY_MS))
            .fetch(self.reader());
        let mut viewer = None;
        let mut rankings = Vec::new();
        while let Some((user, at, post, action, dwell, ranking)) = rows.try_next().await? {
            if viewer != Some(user) {
                viewer = Some(user);
                rankings = self.rankings_of(user, from_ms).await?;
            }
            let event = ShownEvent {
                event_time_ms: from_sql(at),
                post_id: from_sql(post),
                action: &action,
                dwell_ms: dwell.map(from_sql),
                ranking_id: ranking.and_then(|bytes| Uuid::from_slice(&bytes).ok()),
            };
            tally.add_event(&event, &rankings);
        }
        Ok(())
    }

    /// Returns the rankings served to one viewer that an event of this day can belong to,
    /// newest first.
    async fn rankings_of(&self, user: i64, from_ms: UnixMs) -> anyhow::Result<Vec<ServedRanking>> {
        let rows: Vec<(Vec<u8>, i64, String, String)> = sqlx::query_as(RANKINGS_OF)
            .bind(user)
            .bind(to_sql(from_ms.saturating_sub(RANKING_LOOKBACK_MS)))
            .bind(to_sql(from_ms + DAY_MS))
            .fetch_all(self.reader())
            .await?;
        let mut rankings = Vec::with_capacity(rows.len());
        for (ranking_id, served_at, digest, posts) in rows {
            let posts: Vec<(u64, String)> = serde_json::from_str(&posts)?;
            rankings.push(ServedRanking {
                ranking_id: Uuid::from_slice(&ranking_id)?,
                served_at_ms: from_sql(served_at),
                digest,
                reasons: posts.into_iter().collect(),
            });
        }
        Ok(rankings)
    }
}

#[async_trait]
impl ExposureStore for EmbeddedStore {
    async fn record(&self, exposures: &[Exposure]) -> StoreResult<()> {
        self.observed("record_exposures", async {
            let mut tx = self.writer().begin_with("BEGIN IMMEDIATE").await?;
            for exposure in exposures {
                sqlx::query(RECORD)
                    .bind(exposure.ranking_id.as_bytes().as_slice())
                    .bind(&exposure.request_id)
                    .bind(to_sql(exposure.user_id))
                    .bind(to_sql(exposure.served_at_ms))
                    .bind(&exposure.served_by)
                    .bind(&exposure.policy)
                    .bind(&exposure.effective_digest)
                    .bind(&exposure.experiment)
                    .bind(&exposure.variation)
                    .bind(serde_json::to_string(&exposure.posts)?)
                    .bind(serde_json::to_string(&exposure.degraded)?)
                    .execute(&mut *tx)
                    .await?;
            }
            tx.commit().await?;
            Ok(())
        })
        .await
    }

    async fn variation_counts(&self, experiment: &str) -> StoreResult<Vec<VariationCount>> {
        self.observed("variation_counts", async {
            let rows: Vec<(String, i64, i64)> = sqlx::query_as(VARIATIONS)
                .bind(experiment)
                .fetch_all(self.reader())
                .await?;
            let counts = rows
                .into_iter()
                .map(|(variation, exposures, viewers)| VariationCount {
                    variation,
                    exposures: from_sql(exposures),
                    viewers: from_sql(viewers),
                });
            Ok(counts.collect())
        })
        .await
    }

    async fn active_viewers(&self, since_ms: UnixMs, limit: u32) -> StoreResult<Vec<u64>> {
        self.observed("active_viewers", async {
            let rows: Vec<i64> = sqlx::query_scalar(ACTIVE)
                .bind(to_sql(since_ms))
                .bind(limit)
                .fetch_all(self.reader())
                .await?;
            Ok(rows.into_iter().map(from_sql).collect())
        })
        .await
    }

    async fn daily_metrics(&self, day_start_ms: UnixMs) -> StoreResult<DailyCounts> {
        self.observed("daily_metrics", async {
            let mut tally = DayTally::default();
            self.tally_served(&mut tally, day_start_ms).await?;
            self.tally_events(&mut tally, day_start_ms).await?;
            Ok(tally.finish())
        })
        .await
    }
}
