//! Snapshots: rankings kept as they were served, so that later pages continue them. Also the
//! cached candidates that rankings are made from.

use super::deleted::Deleted;
use crate::artifact::Digest;
use crate::experiments::Assignment;
use crate::features::{CandidateSet, Sources};
use crate::post::Counters;
use crate::time::UnixMs;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algo {
    // Its name on the wire is older than the other candidate stores.
    #[serde(rename = "ch")]
    Ranked,
    Timeline,
}

impl Algo {
    pub fn as_str(self) -> &'static str {
        match self {
            Algo::Ranked => "ch",
            Algo::Timeline => "timeline",
        }
    }
}

/// The step of the fallback chain that produced the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServedBy {
    Policy,
    LastGood,
    Native,
    Snapshot,
    Timeline,
}

impl ServedBy {
    pub fn as_str(self) -> &'static str {
        match self {
            ServedBy::Policy => "policy",
            ServedBy::LastGood => "last_good",
            ServedBy::Native => "native",
            ServedBy::Snapshot => "snapshot",
            ServedBy::Timeline => "timeline",
        }
    }
}

/// Identity of the policy, or of the native ranker, that produced a ranking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedPolicy {
    pub name: Arc<str>,
    pub version: Arc<str>,
    pub effective_digest: Digest,
    /// The effective digest in hex. Every response contains it, so it is formatted once.
    pub digest_hex: Arc<str>,
}

impl ServedPolicy {
    /// Identity of the ranker that is compiled into this binary. There are no module bytes, so
    /// the digest is computed from the name and the version.
    pub fn native(algo: Algo) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let identity = format!("native {} {version}", algo.as_str());
        let digest = Digest::from_content(identity.as_bytes());
        Self {
            name: "native".into(),
            version: version.into(),
            effective_digest: digest,
            digest_hex: digest.to_string().into(),
        }
    }

    /// `name@version`, or `native`.
    pub fn label(&self) -> String {
        if &*self.name == "native" {
            "native".to_owned()
        } else {
            format!("{}@{}", self.name, self.version)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SnapshotPost {
    pub post_id: u64,
    pub author_id: u64,
    pub created_at_ms: UnixMs,
    pub counters: Counters,
    /// Score of the post. `None` under `timeline`.
    pub score: Option<f32>,
    pub sources: Sources,
}

#[derive(Debug)]
pub struct Snapshot {
    pub ranking_id: Uuid,
    pub viewer: u64,
    pub algo: Algo,
    pub served_by: ServedBy,
    /// Set if the timeline was served because no ranking could be made.
    pub fallback: bool,
    pub degraded: Vec<String>,
    pub policy: ServedPolicy,
    pub assignment: Option<Assignment>,
    pub created: Instant,
    pub created_at_ms: UnixMs,
    pub seen_version: u64,
    pub posts: Vec<SnapshotPost>,
    /// The rendered first page, which nearly every request asks for.
    pub first_page: OnceLock<FirstPage>,
    /// Generation of [`Deleted`] at which no post of this snapshot was deleted.
    pub whole_in: AtomicU64,
}

#[derive(Debug)]
pub struct FirstPage {
    pub limit: usize,
    pub posts_json: Bytes,
    pub next_cursor: Option<String>,
}

impl Snapshot {
    /// Returns true if no post of the snapshot is deleted.
    pub fn is_whole(&self, deleted: &Deleted) -> bool {
        if self.whole_in.load(Ordering::Relaxed) == deleted.generation || deleted.is_empty() {
            return true;
        }
        let whole = !self.posts.iter().any(|post| deleted.contains(post.post_id));
        if whole {
            self.whole_in.store(deleted.generation, Ordering::Relaxed);
        }
        whole
    }

    /// Returns the memory that the snapshot may grow to, including its rendered first page.
    pub fn size_bytes(&self) -> usize {
        const RENDERED_POST_BYTES: usize = 220;
        const PAGE_POSTS: usize = 50;
        512 + self.posts.len() * size_of::<SnapshotPost>()
            + self.posts.len().min(PAGE_POSTS) * RENDERED_POST_BYTES
    }
}

/// Candidates and features of one viewer, before the seen set and the policy are applied.
#[derive(Debug)]
pub struct CachedCandidates {
    pub set: Arc<CandidateSet>,
    pub fetched: Instant,
}

impl CachedCandidates {
    pub fn size_bytes(&self) -> usize {
        const ROW_BYTES: usize =
            5 * size_of::<u64>() + size_of::<Counters>() + size_of::<Sources>();
        256 + self.set.len() * ROW_BYTES
    }
}
