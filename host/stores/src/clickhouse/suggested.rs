//! Suggested users: users to follow, computed from the follow graph and from the viewer's
//! interactions.

use super::{ALL_THREADS, ClickHouseStore, SUGGESTIONS_TIMEOUT, failure, first_day_of_window};
use crate::guard::Failure;
use clickhouse::Row;
use nova_model::time::UnixMs;
use nova_model::user::SuggestedUser;
use serde::Deserialize;
use std::collections::HashMap;

/// Signals for suggestions. `people` is every user except the viewer who follows at least one of
/// the viewer's followees.
///
/// `argMax(is_deleted, version)` gives the same result as FINAL for the rows that are read. FINAL
/// would merge the whole table for them; this takes half the time over ten million follows.
///
/// `(shared + 1)·(interactions + 1)` gives the same order as `log1p(shared) +
/// log1p(interactions)`, but in exact integers, so that ties are recognised. Ties are broken by
/// the number of followers, and counting the followers of all users would cost more than the rest.
const SIGNALS: &str = "
WITH followees AS (SELECT following_id FROM follows FINAL WHERE follower_id = {viewer:UInt64}),
people AS (
    SELECT follower_id
    FROM follows_by_following
    WHERE following_id IN (SELECT following_id FROM followees) AND follower_id != {viewer:UInt64}
    GROUP BY following_id, follower_id
    HAVING argMax(is_deleted, version) = 0),
followed_by_people AS (
    SELECT following_id
    FROM follows
    WHERE follower_id IN (SELECT follower_id FROM people)
    GROUP BY follower_id, following_id
    HAVING argMax(is_deleted, version) = 0)
SELECT user_id, sum(shared) AS shared, sum(interactions) AS interactions
FROM (
    SELECT following_id AS user_id, count() AS shared, toUInt64(0) AS interactions
    FROM followed_by_people
    GROUP BY following_id
    UNION ALL
    SELECT a.author_id AS user_id, toUInt64(0) AS shared, sum(a.likes + a.comments + a.views) AS interactions
    FROM user_author_90d AS a
    WHERE a.user_id = {viewer:UInt64} AND a.day >= toDate({first_day:UInt16})
    GROUP BY a.author_id)
WHERE user_id != {viewer:UInt64} AND user_id NOT IN (SELECT following_id FROM followees)
GROUP BY user_id
ORDER BY (shared + 1) * (interactions + 1) DESC
LIMIT {contenders:UInt32} WITH TIES";

const PROFILES: &str = "
SELECT u.user_id AS user_id, u.username AS username, u.avatar_url AS avatar_url, u.bio AS bio, f.followers AS followers
FROM users AS u FINAL
LEFT JOIN (
    SELECT following_id, count() AS followers
    FROM follows_by_following FINAL
    WHERE following_id IN {user_ids:Array(UInt64)}
    GROUP BY following_id) AS f ON f.following_id = u.user_id
WHERE u.user_id IN {user_ids:Array(UInt64)}";
/// Maximum number of profiles per query. The ids are one parameter, and ClickHouse
/// accepts 128 KiB in one.
const PROFILES_PER_QUERY: usize = 5_000;

/// Number of extra contenders to read, because signals may point to users who no longer exist.
const CONTENDERS_SPARE: u32 = 20;

#[derive(Debug, Row, Deserialize)]
struct Signals {
    user_id: u64,
    shared: u64,
    interactions: u64,
}

#[derive(Debug, Row, Deserialize)]
struct Profile {
    user_id: u64,
    username: String,
    avatar_url: String,
    bio: String,
    followers: u64,
}

impl ClickHouseStore {
    pub(super) async fn suggestions(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        limit: u32,
    ) -> Result<Vec<SuggestedUser>, Failure> {
        let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut contenders = limit.saturating_add(CONTENDERS_SPARE);
        loop {
            let signals = self.signals(viewer, now_ms, contenders).await?;
            let are_all = (signals.len() as u64) < u64::from(contenders);
            let mut users = self.profiles(&signals).await?;
            if users.len() >= wanted || are_all {
                users.sort_by(|a, b| {
                    (b.affinity_score.total_cmp(&a.affinity_score))
                        .then(b.follower_count.cmp(&a.follower_count))
                        .then(a.user_id.cmp(&b.user_id))
                });
                users.truncate(wanted);
                return Ok(users);
            }
            contenders = contenders.saturating_mul(8);
        }
    }

    /// Returns the best `contenders`, and all users that tie with the last of them.
    async fn signals(
        &self,
        viewer: u64,
        now_ms: UnixMs,
        contenders: u32,
    ) -> Result<Vec<Signals>, Failure> {
        (self.reader.query(SIGNALS))
            .with_setting(ALL_THREADS.0, ALL_THREADS.1)
            .with_setting(
                "max_execution_time",
                SUGGESTIONS_TIMEOUT.as_secs().to_string(),
            )
            .param("viewer", viewer)
            .param("first_day", first_day_of_window(now_ms))
            .param("contenders", contenders)
            .fetch_all()
            .await
            .map_err(failure)
    }

    /// Returns the profiles of those that still are users, in no particular order.
    async fn profiles(&self, signals: &[Signals]) -> Result<Vec<SuggestedUser>, Failure> {
        let mut users = Vec::with_capacity(signals.len());
        for signals in signals.chunks(PROFILES_PER_QUERY) {
            let scores: HashMap<u64, f64> = signals
                .iter()
                .map(|found| (found.user_id, affinity_score(found)))
                .collect();
            let ids: Vec<u64> = scores.keys().copied().collect();
            let query = self.reader.query(PROFILES).param("user_ids", &ids);
            let profiles: Vec<Profile> = query.fetch_all().await.map_err(failure)?;
            users.extend(profiles.into_iter().map(|profile| SuggestedUser {
                user_id: profile.user_id,
                username: profile.username,
                avatar_url: profile.avatar_url,
                bio: profile.bio,
                follower_count: profile.followers,
                affinity_score: scores.get(&profile.user_id).copied().unwrap_or_default(),
            }));
        }
        Ok(users)
    }
}

/// `log1p(shared) + log1p(interactions)`; see docs/semantics.md, "Suggested users".
fn affinity_score(signals: &Signals) -> f64 {
    (signals.shared as f64).ln_1p() + (signals.interactions as f64).ln_1p()
}
