//! The six files: their columns, how a row is read, and the statements that check and load it.
//!
//! Each statement works on the whole staged file. A check returns (line, reason) of the first bad
//! row, if there is one.

use super::rows::{Row, parse_id};
use crate::stores::Action;
use crate::stores::embedded::{Hex16, first_16};
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

#[derive(Debug)]
pub(super) struct ImportFile {
    pub name: &'static str,
    pub required: &'static [&'static str],
    pub optional: &'static [&'static str],
    pub time_column: &'static str,
    /// A row as a JSON array, in the order in which `stage` reads it, or what is wrong with it.
    pub parse: fn(&Row<'_>) -> Result<String, String>,
    /// ?1: a JSON array of such rows.
    pub stage: &'static str,
    pub checks: &'static [&'static str],
    /// Removes from the stage what the store already has.
    pub leave_out_known: &'static str,
    pub insert: &'static str,
    /// What the new rows add to the aggregates.
    pub effects: &'static [&'static str],
}

/// In the order of their references.
pub(super) static FILES: [ImportFile; 6] = [USERS, POSTS, FOLLOWS, COMMENTS, LIKES, EVENTS];

/// The largest count a row may carry, that of ids.
const MAX_VIEWS: u64 = (1 << 53) - 1;
const MAX_DWELL_MS: u64 = 3_600_000;

fn json(row: &impl Serialize) -> Result<String, String> {
    serde_json::to_string(row).map_err(|error| error.to_string())
}

const USERS: ImportFile = ImportFile {
    name: "users.csv",
    required: &["user_id", "created_at"],
    optional: &["username", "avatar_url", "bio", "country", "language"],
    time_column: "created_at",
    parse: |row| {
        json(&(
            row.id("user_id")?,
            row.line,
            row.time_ms("created_at")?,
            row.text("username"),
            row.text("avatar_url"),
            row.text("bio"),
            row.text("country"),
            row.text("language"),
        ))
    },
    stage: "
INSERT INTO staged_users (user_id, line, created_at_ms, username, avatar_url, bio, country, language)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7
FROM json_each(?1) WHERE true
ON CONFLICT (user_id) DO UPDATE SET again_line = excluded.line
WHERE again_line IS NULL
  AND (created_at_ms, username, avatar_url, bio, country, language)
      IS NOT (excluded.created_at_ms, excluded.username, excluded.avatar_url, excluded.bio,
              excluded.country, excluded.language)",
    checks: &["
SELECT again_line, 'user ' || user_id || ' is on line ' || line || ' as well, with other content'
FROM staged_users WHERE again_line IS NOT NULL ORDER BY again_line LIMIT 1"],
    leave_out_known: "
DELETE FROM staged_users WHERE EXISTS (SELECT 1 FROM users u WHERE u.user_id = staged_users.user_id)",
    insert: "
INSERT INTO users (user_id, created_at_ms, username, avatar_url, bio, country, language)
SELECT user_id, created_at_ms, username, avatar_url, bio, country, language FROM staged_users",
    effects: &[],
};

const POSTS: ImportFile = ImportFile {
    name: "posts.csv",
    required: &["post_id", "author_id", "created_at"],
    optional: &["view_count"],
    time_column: "created_at",
    parse: |row| {
        json(&(
            row.id("post_id")?,
            row.line,
            row.id("author_id")?,
            row.time_ms("created_at")?,
            row.optional_number("view_count", MAX_VIEWS)?.unwrap_or(0),
        ))
    },
    stage: "
INSERT INTO staged_posts (post_id, line, author_id, created_at_ms, view_count)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4
FROM json_each(?1) WHERE true
ON CONFLICT (post_id) DO UPDATE SET again_line = excluded.line
WHERE again_line IS NULL
  AND (author_id, created_at_ms, view_count)
      IS NOT (excluded.author_id, excluded.created_at_ms, excluded.view_count)",
    checks: &[
        "
SELECT again_line, 'post ' || post_id || ' is on line ' || line || ' as well, with other content'
FROM staged_posts WHERE again_line IS NOT NULL ORDER BY again_line LIMIT 1",
        "
SELECT line, 'author_id: user ' || author_id || ' is neither in the store nor in users.csv'
FROM staged_posts s
WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.user_id = s.author_id) ORDER BY line LIMIT 1",
        "
SELECT s.line, 'post ' || s.post_id || ' is already in the store, by user ' || p.author_id
FROM staged_posts s JOIN posts p ON p.post_id = s.post_id
WHERE p.author_id <> s.author_id ORDER BY s.line LIMIT 1",
    ],
    leave_out_known: "
DELETE FROM staged_posts WHERE EXISTS (SELECT 1 FROM posts p WHERE p.post_id = staged_posts.post_id)",
    insert: "
INSERT INTO posts (post_id, author_id, created_at_ms)
SELECT post_id, author_id, created_at_ms FROM staged_posts",
    effects: &["
INSERT INTO post_metrics_1h (post_id, hour_ms, views, likes, comments, shares, dwell_ms_sum, exposures)
SELECT post_id, created_at_ms - created_at_ms % 3600000, view_count, 0, 0, 0, 0, view_count
FROM staged_posts
WHERE view_count > 0
ON CONFLICT (post_id, hour_ms) DO UPDATE SET
    views = views + excluded.views, exposures = exposures + excluded.exposures"],
};

const FOLLOWS: ImportFile = ImportFile {
    name: "follows.csv",
    required: &["follower_id", "following_id", "created_at"],
    optional: &[],
    time_column: "created_at",
    parse: |row| {
        json(&(
            row.id("follower_id")?,
            row.id("following_id")?,
            row.line,
            row.time_ms("created_at")?,
        ))
    },
    // An edge that comes twice, whatever its time, is one edge: the first.
    stage: "
INSERT INTO staged_follows (follower_id, following_id, line, created_at_ms)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3
FROM json_each(?1) WHERE true
ON CONFLICT DO NOTHING",
    checks: &[
        "
SELECT line, 'follower_id: user ' || follower_id || ' is neither in the store nor in users.csv'
FROM staged_follows s
WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.user_id = s.follower_id) ORDER BY line LIMIT 1",
        "
SELECT line, 'following_id: user ' || following_id || ' is neither in the store nor in users.csv'
FROM staged_follows s
WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.user_id = s.following_id) ORDER BY line LIMIT 1",
    ],
    leave_out_known: "
DELETE FROM staged_follows WHERE EXISTS (
    SELECT 1 FROM follows f
    WHERE f.follower_id = staged_follows.follower_id AND f.following_id = staged_follows.following_id)",
    insert: "
INSERT INTO follows (follower_id, following_id, created_at_ms)
SELECT follower_id, following_id, created_at_ms FROM staged_follows",
    effects: &[],
};

const COMMENTS: ImportFile = ImportFile {
    name: "comments.csv",
    required: &["comment_id", "post_id", "user_id", "created_at"],
    optional: &[],
    time_column: "created_at",
    parse: |row| {
        json(&(
            row.id("comment_id")?,
            row.line,
            row.id("post_id")?,
            row.id("user_id")?,
            row.time_ms("created_at")?,
        ))
    },
    stage: "
INSERT INTO staged_comments (comment_id, line, post_id, user_id, created_at_ms)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4
FROM json_each(?1) WHERE true
ON CONFLICT (comment_id) DO UPDATE SET again_line = excluded.line
WHERE again_line IS NULL
  AND (post_id, user_id, created_at_ms)
      IS NOT (excluded.post_id, excluded.user_id, excluded.created_at_ms)",
    checks: &[
        "
SELECT again_line, 'comment ' || comment_id || ' is on line ' || line || ' as well, with other content'
FROM staged_comments WHERE again_line IS NOT NULL ORDER BY again_line LIMIT 1",
        "
SELECT line, 'post_id: post ' || post_id || ' is neither in the store nor in posts.csv'
FROM staged_comments s
WHERE NOT EXISTS (SELECT 1 FROM posts p WHERE p.post_id = s.post_id) ORDER BY line LIMIT 1",
        "
SELECT line, 'user_id: user ' || user_id || ' is neither in the store nor in users.csv'
FROM staged_comments s
WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.user_id = s.user_id) ORDER BY line LIMIT 1",
        "
SELECT s.line, 'comment ' || s.comment_id || ' is already in the store, with another post or user'
FROM staged_comments s JOIN comments c ON c.comment_id = s.comment_id
WHERE (c.post_id, c.user_id) IS NOT (s.post_id, s.user_id) ORDER BY s.line LIMIT 1",
    ],
    leave_out_known: "
DELETE FROM staged_comments
WHERE EXISTS (SELECT 1 FROM comments c WHERE c.comment_id = staged_comments.comment_id)",
    insert: "
INSERT INTO comments (comment_id, post_id, user_id, created_at_ms)
SELECT comment_id, post_id, user_id, created_at_ms FROM staged_comments",
    effects: &[
        "
INSERT INTO post_metrics_1h (post_id, hour_ms, views, likes, comments, shares, dwell_ms_sum, exposures)
SELECT post_id, created_at_ms - created_at_ms % 3600000, 0, 0, count(*), 0, 0, 0
FROM staged_comments
WHERE true
GROUP BY 1, 2
ON CONFLICT (post_id, hour_ms) DO UPDATE SET comments = comments + excluded.comments",
        "
INSERT INTO user_author_90d (user_id, author_id, day_ms, likes, comments, views)
SELECT s.user_id, p.author_id, s.created_at_ms - s.created_at_ms % 86400000, 0, count(*), 0
FROM staged_comments s CROSS JOIN posts p ON p.post_id = s.post_id
WHERE true
GROUP BY 1, 2, 3
ON CONFLICT (user_id, author_id, day_ms) DO UPDATE SET comments = comments + excluded.comments",
    ],
};

const LIKES: ImportFile = ImportFile {
    name: "likes.csv",
    required: &["like_id", "post_id", "user_id", "created_at"],
    optional: &[],
    time_column: "created_at",
    parse: |row| {
        json(&(
            row.id("like_id")?,
            row.line,
            row.id("post_id")?,
            row.optional_id("user_id")?,
            row.time_ms("created_at")?,
        ))
    },
    stage: "
INSERT INTO staged_likes (like_id, line, post_id, user_id, created_at_ms)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4
FROM json_each(?1) WHERE true
ON CONFLICT (like_id) DO UPDATE SET again_line = excluded.line
WHERE again_line IS NULL
  AND (post_id, user_id, created_at_ms)
      IS NOT (excluded.post_id, excluded.user_id, excluded.created_at_ms)",
    checks: &[
        "
SELECT again_line, 'like ' || like_id || ' is on line ' || line || ' as well, with other content'
FROM staged_likes WHERE again_line IS NOT NULL ORDER BY again_line LIMIT 1",
        "
SELECT line, 'post_id: post ' || post_id || ' is neither in the store nor in posts.csv'
FROM staged_likes s
WHERE NOT EXISTS (SELECT 1 FROM posts p WHERE p.post_id = s.post_id) ORDER BY line LIMIT 1",
        "
SELECT line, 'user_id: user ' || user_id || ' is neither in the store nor in users.csv'
FROM staged_likes s
WHERE user_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM users u WHERE u.user_id = s.user_id)
ORDER BY line LIMIT 1",
        "
SELECT s.line, 'like ' || s.like_id || ' is already in the store, with another post or user'
FROM staged_likes s JOIN likes l ON l.like_id = s.like_id
WHERE (l.post_id, l.user_id) IS NOT (s.post_id, s.user_id) ORDER BY s.line LIMIT 1",
    ],
    leave_out_known: "
DELETE FROM staged_likes WHERE EXISTS (SELECT 1 FROM likes l WHERE l.like_id = staged_likes.like_id)",
    insert: "
INSERT INTO likes (like_id, post_id, user_id, created_at_ms)
SELECT like_id, post_id, user_id, created_at_ms FROM staged_likes",
    effects: &[
        "
INSERT INTO post_metrics_1h (post_id, hour_ms, views, likes, comments, shares, dwell_ms_sum, exposures)
SELECT post_id, created_at_ms - created_at_ms % 3600000, 0, count(*), 0, 0, 0, 0
FROM staged_likes
WHERE true
GROUP BY 1, 2
ON CONFLICT (post_id, hour_ms) DO UPDATE SET likes = likes + excluded.likes",
        // An anonymous like counts for its post and for nobody's affinity.
        "
INSERT INTO user_author_90d (user_id, author_id, day_ms, likes, comments, views)
SELECT s.user_id, p.author_id, s.created_at_ms - s.created_at_ms % 86400000, count(*), 0, 0
FROM staged_likes s CROSS JOIN posts p ON p.post_id = s.post_id
WHERE s.user_id IS NOT NULL
GROUP BY 1, 2, 3
ON CONFLICT (user_id, author_id, day_ms) DO UPDATE SET likes = likes + excluded.likes",
    ],
};

const EVENTS: ImportFile = ImportFile {
    name: "events.csv",
    required: &[
        "event_id",
        "event_time",
        "user_id",
        "post_id",
        "author_id",
        "action",
    ],
    optional: &["dwell_ms", "device", "app_ver"],
    time_column: "event_time",
    parse: parse_event,
    stage: "
INSERT INTO staged_events (event_id, idempotency_key, line, event_time_ms, user_id, post_id,
                           author_id, action, dwell_ms, device, app_ver)
SELECT unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, value ->> 5,
       value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10
FROM json_each(?1) WHERE true
ON CONFLICT (event_id) DO UPDATE SET again_line = excluded.line
WHERE again_line IS NULL
  AND (event_time_ms, user_id, post_id, author_id, action, dwell_ms, device, app_ver)
      IS NOT (excluded.event_time_ms, excluded.user_id, excluded.post_id, excluded.author_id,
              excluded.action, excluded.dwell_ms, excluded.device, excluded.app_ver)",
    checks: &[
        "
SELECT again_line, 'the same event_id is on line ' || line || ' as well, with other content'
FROM staged_events WHERE again_line IS NOT NULL ORDER BY again_line LIMIT 1",
        "
SELECT line, 'post_id: post ' || post_id || ' is neither in the store nor in posts.csv'
FROM staged_events s
WHERE NOT EXISTS (SELECT 1 FROM posts p WHERE p.post_id = s.post_id) ORDER BY line LIMIT 1",
        "
SELECT line, 'user_id: user ' || user_id || ' is neither in the store nor in users.csv'
FROM staged_events s
WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.user_id = s.user_id) ORDER BY line LIMIT 1",
        "
SELECT s.line, 'the same event_id is already in the store, with another post or user'
FROM staged_events s JOIN imported_events i ON i.event_id = s.event_id
WHERE (i.post_id, i.user_id) IS NOT (s.post_id, s.user_id) ORDER BY s.line LIMIT 1",
    ],
    leave_out_known: "
DELETE FROM staged_events
WHERE EXISTS (SELECT 1 FROM imported_events i WHERE i.event_id = staged_events.event_id)",
    insert: "
INSERT INTO imported_events (event_id, user_id, post_id)
SELECT event_id, user_id, post_id FROM staged_events",
    // Accepted when it happened. An event that its user's client sent under the same id is there
    // already; the aggregates follow from what is really inserted.
    effects: &["
INSERT INTO events (idempotency_key, event_id, event_time_ms, accepted_ms, user_id, post_id,
                    author_id, action, dwell_ms, device, app_ver)
SELECT idempotency_key, event_id, event_time_ms, event_time_ms, user_id, post_id, author_id,
       action, dwell_ms, device, app_ver
FROM staged_events
WHERE true
ON CONFLICT DO NOTHING"],
};

fn parse_event(row: &Row<'_>) -> Result<String, String> {
    let event_id = parse_event_id(row.text("event_id"))?;
    let action = row.text("action");
    let action = Action::parse(action).ok_or_else(|| {
        let known = Action::ALL.map(Action::as_str).join(", ");
        format!("action: {action:?} is none of {known}")
    })?;
    json(&(
        Hex16(event_id),
        Hex16(imported_identity(event_id)),
        row.line,
        row.time_ms("event_time")?,
        row.id("user_id")?,
        row.id("post_id")?,
        row.id("author_id")?,
        action,
        row.optional_number("dwell_ms", MAX_DWELL_MS)?,
        row.text("device"),
        row.text("app_ver"),
    ))
}

/// A uuid as the API has them, or a number as the other files have them, spread over 16 bytes.
fn parse_event_id(text: &str) -> Result<[u8; 16], String> {
    if let Ok(id) = Uuid::try_parse(text) {
        return Ok(id.into_bytes());
    }
    let id =
        parse_id(text).map_err(|_| format!("event_id: {text:?} is neither a uuid nor an id"))?;
    Ok(first_16(
        &Sha256::new()
            .chain_update("event-number")
            .chain_update(id.to_be_bytes())
            .finalize(),
    ))
}

/// Takes the place of the idempotency key: an imported event is known by its own id alone.
fn imported_identity(event_id: [u8; 16]) -> [u8; 16] {
    first_16(
        &Sha256::new()
            .chain_update("imported")
            .chain_update(event_id)
            .finalize(),
    )
}
