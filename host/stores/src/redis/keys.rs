//! The names of all keys that Nova uses in Redis. `v1` is the format of the key; values have
//! their own format version.

use uuid::Uuid;

/// Candidates and features of a viewer.
pub fn candidates(viewer: u64) -> String {
    format!("feed:v1:{viewer}")
}

pub fn snapshot(ranking_id: Uuid) -> String {
    format!("snap:v1:{ranking_id}")
}

/// A hash: effective digest → its latest ranking. It is one key, so that one command
/// invalidates all entries.
pub fn latest(viewer: u64) -> String {
    format!("latest:v1:{viewer}")
}

/// The viewer's newest ranking that is not a timeline. Unlike `latest`, it outlives the epoch.
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

/// A set: the events of this viewer and hour of event time that any host has accepted.
pub fn claims(viewer: u64, hour: u64) -> String {
    format!("claim:v2:{viewer}:{hour}")
}

pub fn lease(job: &str) -> String {
    format!("lease:{job}")
}

/// A sorted set: post → time of its deletion in ms, by the clock of Redis.
pub const DELETED: &str = "deleted:posts";

/// A hash: post → the version of its row that the entry in [`DELETED`] refers to.
pub const DELETED_VERSIONS: &str = "deleted:versions";

/// Channel on which a change of [`DELETED`] is announced.
pub const DELETED_CHANNEL: &str = "nova:deleted";

/// Prefixes that the scan distinguishes: those of the keys above, and those that callers of
/// the value cache use.
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
