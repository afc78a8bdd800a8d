//! The names of everything Nova keeps in Redis. `v1` is the format of the key; values carry one of their own.

use uuid::Uuid;

/// Candidates and features of a viewer.
pub fn candidates(viewer: u64) -> String {
    format!("feed:v1:{viewer}")
}

pub fn snapshot(ranking_id: Uuid) -> String {
    format!("snap:v1:{ranking_id}")
}

/// A hash: effective digest → the ranking it made last. One key, so that one command ends them all.
pub fn latest(viewer: u64) -> String {
    format!("latest:v1:{viewer}")
}

/// The viewer's newest ranking that is no timeline. It outlives the epoch, unlike `latest`.
pub fn newest(viewer: u64) -> String {
    format!("newest:v1:{viewer}")
}

pub fn epoch(viewer: u64) -> String {
    format!("epoch:v1:{viewer}")
}

pub fn seen(viewer: u64, slice: u64) -> String {
    format!("seen:{viewer}:{slice}")
}

pub fn seen_version(viewer: u64) -> String {
    format!("seen:{viewer}:version")
}

/// A set: the events of this viewer and hour of event time that some host accepted.
pub fn claims(viewer: u64, hour: u64) -> String {
    format!("claim:v2:{viewer}:{hour}")
}

pub fn lease(job: &str) -> String {
    format!("lease:{job}")
}

/// A sorted set: post → when it was deleted, ms by the clock of Redis.
pub const DELETED: &str = "deleted:posts";

/// A hash: post → the version of its row that [`DELETED`] is about.
pub const DELETED_VERSIONS: &str = "deleted:versions";

/// Says that [`DELETED`] has grown.
pub const DELETED_CHANNEL: &str = "nova:deleted";

/// What the scan tells apart: the beginnings of the keys above, and of those that callers of the value cache choose.
pub const PREFIXES: &[&str] = &[
    "feed:v1:",
    "snap:v1:",
    "latest:v1:",
    "newest:v1:",
    "epoch:v1:",
    "seen:",
    "claim:v2:",
    "lease:",
    "deleted:",
    "hot:posts:",
    "last:posts:",
    "suggest:users:",
    "metrics:daily:",
];
