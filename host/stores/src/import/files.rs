//! The six files: their columns, the parsing of their rows, and the checks that find a bad row.
//!
//! A file's rows are checked as a whole after they are staged. The same statements run in every
//! store. A check returns (line, reason) of the first bad row, if there is one.

use super::rows::{Row, parse_id};
use crate::embedded::{Hex16, first_16};
use crate::ports::FileKind;
use nova_model::event::Action;
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

#[derive(Debug)]
pub struct ImportFile {
    pub kind: FileKind,
    pub name: &'static str,
    pub required: &'static [&'static str],
    pub optional: &'static [&'static str],
    pub time_column: &'static str,
    /// Converts a row to a JSON array in the order in which targets stage it, or returns the
    /// reason why it is bad.
    pub(super) parse: fn(&Row<'_>) -> Result<String, String>,
    pub checks: &'static [&'static str],
    /// Removes the rows that the store already has from the staging table.
    pub leave_out_known: &'static str,
}

impl ImportFile {
    pub(super) fn from_kind(kind: FileKind) -> &'static Self {
        &FILES[kind as usize]
    }
}

/// The files in the order of their references, which is the order of [`FileKind`].
pub(super) static FILES: [ImportFile; 6] = [USERS, POSTS, FOLLOWS, COMMENTS, LIKES, EVENTS];

/// The largest count of a row, equal to the largest id.
const MAX_VIEWS: u64 = (1 << 53) - 1;
const MAX_DWELL_MS: u64 = 3_600_000;

fn json(row: &impl Serialize) -> Result<String, String> {
    serde_json::to_string(row).map_err(|error| error.to_string())
}

const USERS: ImportFile = ImportFile {
    kind: FileKind::Users,
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
    checks: &["
SELECT again_line, 'user ' || user_id || ' is on line ' || line || ' as well, with other content'
FROM staged_users WHERE again_line IS NOT NULL ORDER BY again_line LIMIT 1"],
    leave_out_known: "
DELETE FROM staged_users WHERE EXISTS (SELECT 1 FROM users u WHERE u.user_id = staged_users.user_id)",
};

const POSTS: ImportFile = ImportFile {
    kind: FileKind::Posts,
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
};

const FOLLOWS: ImportFile = ImportFile {
    kind: FileKind::Follows,
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
};

const COMMENTS: ImportFile = ImportFile {
    kind: FileKind::Comments,
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
WHERE (c.post_id, c.user_id) IS DISTINCT FROM (s.post_id, s.user_id) ORDER BY s.line LIMIT 1",
    ],
    leave_out_known: "
DELETE FROM staged_comments
WHERE EXISTS (SELECT 1 FROM comments c WHERE c.comment_id = staged_comments.comment_id)",
};

const LIKES: ImportFile = ImportFile {
    kind: FileKind::Likes,
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
WHERE (l.post_id, l.user_id) IS DISTINCT FROM (s.post_id, s.user_id) ORDER BY s.line LIMIT 1",
    ],
    leave_out_known: "
DELETE FROM staged_likes WHERE EXISTS (SELECT 1 FROM likes l WHERE l.like_id = staged_likes.like_id)",
};

const EVENTS: ImportFile = ImportFile {
    kind: FileKind::Events,
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
WHERE (i.post_id, i.user_id) IS DISTINCT FROM (s.post_id, s.user_id) ORDER BY s.line LIMIT 1",
    ],
    leave_out_known: "
DELETE FROM staged_events
WHERE EXISTS (SELECT 1 FROM imported_events i WHERE i.event_id = staged_events.event_id)",
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

/// Parses an event id: a uuid as in the API, or a number as in the other files, hashed to 16
/// bytes.
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

/// Returns the value that replaces the idempotency key, because only its own id identifies an
/// imported event.
fn imported_identity(event_id: [u8; 16]) -> [u8; 16] {
    first_16(
        &Sha256::new()
            .chain_update("imported")
            .chain_update(event_id)
            .finalize(),
    )
}
