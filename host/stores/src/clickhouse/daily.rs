//! The counts of one UTC day, overall and by effective digest, computed in ClickHouse.

use super::{ClickHouseStore, failure, to_ticks};
use crate::guard::Failure;
use clickhouse::Row;
use nova_model::daily::{DailyCounts, DigestCounts};
use nova_model::time::{DAY_MS, UnixMs};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Time before the day in which the ranking of an event of that day may lie. A snapshot lives
/// minutes, and an event is at most a day old when it is accepted. A week also covers a client
/// that showed a stored page for days, and limits how much is read.
const RANKING_LOOKBACK_MS: u64 = 7 * DAY_MS;

const SERVED: &str = "
SELECT effective_digest AS digest, count() AS rankings, countIf(empty(degraded)) AS rankings_whole,
       sum(length(posts)) AS posts_served, toUInt64(sum(length(posts) - length(arrayDistinct(posts)))) AS posts_repeated
FROM served FINAL
WHERE served_at >= fromUnixTimestamp64Milli({from:Int64}, 'UTC') AND served_at < fromUnixTimestamp64Milli({to:Int64}, 'UTC')
GROUP BY digest";

/// Counts of shown posts. An event belongs to the ranking that it names if that ranking was
/// served to its viewer, and otherwise to none, because a client must not change another
/// policy's numbers with an invented ranking id. An event that names no ranking belongs to the
/// viewer's latest ranking, at or before the event, that contains the post.
///
/// `all` marks the one row over all digests, which includes events without a ranking. Imported
/// view counts have no viewer and are left out.
const SHOWN: &str = "
WITH shown AS (
    SELECT user_id, event_time, post_id, action, dwell_ms, ranking_id
    FROM events
    WHERE event_time >= fromUnixTimestamp64Milli({from:Int64}, 'UTC') AND event_time < fromUnixTimestamp64Milli({to:Int64}, 'UTC')
      AND user_id != 0 AND (action IN ('impression', 'view') OR dwell_ms IS NOT NULL)),
rankings AS (
    SELECT user_id, ranking_id, served_at, effective_digest, posts, reasons
    FROM served FINAL
    WHERE served_at >= fromUnixTimestamp64Milli({look_back:Int64}, 'UTC') AND served_at < fromUnixTimestamp64Milli({to:Int64}, 'UTC')
      AND user_id IN (SELECT user_id FROM shown)),
placed AS (
    SELECT user_id, post_id, served_at, max((ranking_id, effective_digest, reason)) AS place
    FROM rankings ARRAY JOIN posts AS post_id, reasons AS reason
    GROUP BY user_id, post_id, served_at),
belonging AS (
    SELECT s.action AS action, s.dwell_ms AS dwell_ms, r.effective_digest AS digest,
           r.reasons[indexOf(r.posts, s.post_id)] AS reason
    FROM shown AS s
    LEFT JOIN rankings AS r ON r.user_id = s.user_id AND r.ranking_id = s.ranking_id
    WHERE s.ranking_id IS NOT NULL
    UNION ALL
    SELECT s.action, s.dwell_ms, p.place.2, p.place.3
    FROM shown AS s
    ASOF LEFT JOIN placed AS p ON p.user_id = s.user_id AND p.post_id = s.post_id AND p.served_at <= s.event_time
    WHERE s.ranking_id IS NULL)
SELECT digest, grouping(digest) = 1 AS all,
       countIf(action = 'impression') AS impressions, countIf(action = 'view') AS views,
       countIf(action = 'impression' AND reason NOT IN ('', 'followees')) AS recommended_impressions,
       countIf(action = 'view' AND reason NOT IN ('', 'followees')) AS recommended_views,
       count(dwell_ms) AS dwells,
       ifNull(quantileExactInclusive(0.5)(dwell_ms), 0) AS dwell_p50_ms,
       ifNull(quantileExactInclusive(0.95)(dwell_ms), 0) AS dwell_p95_ms
FROM belonging
GROUP BY GROUPING SETS ((digest), ())";

#[derive(Debug, Row, Deserialize)]
struct ServedCounts {
    digest: String,
    rankings: u64,
    rankings_whole: u64,
    posts_served: u64,
    posts_repeated: u64,
}

#[derive(Debug, Row, Deserialize)]
struct ShownCounts {
    digest: String,
    all: bool,
    impressions: u64,
    views: u64,
    recommended_impressions: u64,
    recommended_views: u64,
    dwells: u64,
    dwell_p50_ms: f64,
    dwell_p95_ms: f64,
}

impl ServedCounts {
    fn add_to(&self, counts: &mut DigestCounts) {
        counts.rankings += self.rankings;
        counts.rankings_whole += self.rankings_whole;
        counts.posts_served += self.posts_served;
        counts.posts_repeated += self.posts_repeated;
    }
}

impl ShownCounts {
    fn add_to(&self, counts: &mut DigestCounts) {
        counts.impressions += self.impressions;
        counts.views += self.views;
        counts.recommended_impressions += self.recommended_impressions;
        counts.recommended_views += self.recommended_views;
        if self.dwells > 0 {
            counts.dwell_p50_ms = Some(self.dwell_p50_ms);
            counts.dwell_p95_ms = Some(self.dwell_p95_ms);
        }
    }
}

impl ClickHouseStore {
    pub(super) async fn count_day(&self, day_start_ms: UnixMs) -> Result<DailyCounts, Failure> {
        let of_day = |query: &str| {
            let look_back_ms = day_start_ms.saturating_sub(RANKING_LOOKBACK_MS);
            (self.worker.query(query))
                .param("from", to_ticks(day_start_ms))
                .param("to", to_ticks(day_start_ms + DAY_MS))
                .param("look_back", to_ticks(look_back_ms))
        };
        let served: Vec<ServedCounts> = of_day(SERVED).fetch_all().await.map_err(failure)?;
        let shown: Vec<ShownCounts> = of_day(SHOWN).fetch_all().await.map_err(failure)?;

        let mut overall = DigestCounts::default();
        let mut by_digest: BTreeMap<String, DigestCounts> = BTreeMap::new();
        for counts in &served {
            counts.add_to(&mut overall);
            counts.add_to(by_digest.entry(counts.digest.clone()).or_default());
        }
        for counts in &shown {
            if counts.all {
                counts.add_to(&mut overall);
            } else if !counts.digest.is_empty() {
                counts.add_to(by_digest.entry(counts.digest.clone()).or_default());
            }
        }
        Ok(DailyCounts {
            overall,
            by_digest: by_digest.into_iter().collect(),
        })
    }
}
