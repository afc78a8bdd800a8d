//! Suggested users: candidates from the follow graph and from the authors that the viewer
//! engages with.

use super::candidates::first_day_of_window;
use super::{EmbeddedStore, from_sql, json_ids, to_sql};
use crate::ports::StoreResult;
use nova_model::time::UnixMs;
use nova_model::user::SuggestedUser;
use std::collections::HashMap;

/// `people` holds all users except the viewer who follow at least one of the viewer's
/// followees.
const SUGGESTIONS: &str = "
WITH followees AS MATERIALIZED (SELECT following_id FROM follows WHERE follower_id = ?1),
people AS MATERIALIZED (
    SELECT DISTINCT f.follower_id AS person
    FROM followees CROSS JOIN follows f ON f.following_id = followees.following_id
    WHERE f.follower_id <> ?1),
signals AS (
    SELECT f.following_id AS user_id, count(*) AS shared, 0 AS interactions
    FROM people CROSS JOIN follows f ON f.follower_id = people.person
    GROUP BY f.following_id
    UNION ALL
    SELECT author_id, 0, sum(likes + comments + views)
    FROM user_author_90d
    WHERE user_id = ?1 AND day_ms >= ?2
    GROUP BY author_id)
SELECT s.user_id, sum(s.shared), sum(s.interactions)
FROM signals s
WHERE s.user_id <> ?1
  AND s.user_id NOT IN (SELECT following_id FROM followees)
  AND EXISTS (SELECT 1 FROM users u WHERE u.user_id = s.user_id)
GROUP BY s.user_id";

const PROFILES: &str = "
SELECT u.user_id, u.username, u.avatar_url, u.bio,
       (SELECT count(*) FROM follows f WHERE f.following_id = u.user_id)
FROM users u
WHERE u.user_id IN (SELECT value FROM json_each(?1))";

/// Computes `log1p(shared) + log1p(interactions)`. See docs/semantics.md, "Suggested users".
fn affinity_score(shared: i64, interactions: i64) -> f64 {
    (shared as f64).ln_1p() + (interactions as f64).ln_1p()
}

/// Returns the best `limit` users by score and all that tie with the last one. The follower
/// count breaks these ties later, and counting the followers of all users would cost more than
/// the rest of the query.
fn contenders(signals: Vec<(i64, i64, i64)>, limit: usize) -> HashMap<u64, f64> {
    let mut scored: Vec<(u64, f64)> = signals
        .into_iter()
        .map(|(user, shared, interactions)| (from_sql(user), affinity_score(shared, interactions)))
        .collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    let Some(last) = limit.checked_sub(1) else {
        return HashMap::new();
    };
    if let Some(&(_, lowest)) = scored.get(last) {
        scored.retain(|(_, score)| *score >= lowest);
    }
    scored.into_iter().collect()
}

impl EmbeddedStore {
    async fn profiles(&self, scores: &HashMap<u64, f64>) -> anyhow::Result<Vec<SuggestedUser>> {
        let ids: Vec<u64> = scores.keys().copied().collect();
        let rows: Vec<(i64, String, String, String, i64)> = sqlx::query_as(PROFILES)
            .bind(json_ids(&ids))
            .fetch_all(self.reader())
            .await?;
        let users = rows
            .into_iter()
            .map(|(user, username, avatar_url, bio, followers)| {
                let user_id = from_sql(user);
                SuggestedUser {
                    user_id,
                    username,
                    avatar_url,
                    bio,
                    follower_count: from_sql(followers),
                    affinity_score: scores.get(&user_id).copied().unwrap_or_default(),
                }
            });
        Ok(users.collect())
    }

    pub(super) async fn suggestions(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> StoreResult<Vec<SuggestedUser>> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.observed("suggested_users", async {
            let signals = sqlx::query_as(SUGGESTIONS)
                .bind(to_sql(viewer))
                .bind(first_day_of_window(now_ms))
                .fetch_all(self.reader())
                .await?;
            let mut users = self.profiles(&contenders(signals, limit)).await?;
            users.sort_by(|a, b| {
                (b.affinity_score.total_cmp(&a.affinity_score))
                    .then(b.follower_count.cmp(&a.follower_count))
                    .then(a.user_id.cmp(&b.user_id))
            });
            users.truncate(limit);
            Ok(users)
        })
        .await
    }
}
