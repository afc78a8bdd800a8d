//! Rows of the captured tables, as PostgreSQL has them before and after a change.

use chrono::{DateTime, Utc};
use serde::Deserialize;

/// A row before and after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition<R> {
    pub before: Option<R>,
    pub after: Option<R>,
    pub lsn: u64,
    pub committed_ms: u64,
    /// True if the row was read by a snapshot and not changed.
    pub snapshot: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct User {
    pub user_id: u64,
    pub created_at: DateTime<Utc>,
    pub username: String,
    pub avatar_url: String,
    pub bio: String,
    pub country: String,
    pub language: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Post {
    pub post_id: u64,
    pub author_id: u64,
    pub created_at: DateTime<Utc>,
    pub deleted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Follow {
    pub follower_id: u64,
    pub following_id: u64,
    pub created_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Comment {
    pub comment_id: u64,
    pub post_id: u64,
    pub user_id: u64,
    pub created_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Like {
    pub like_id: u64,
    pub post_id: u64,
    /// `None` if the like is anonymous.
    pub user_id: Option<u64>,
    pub created_at: DateTime<Utc>,
}
