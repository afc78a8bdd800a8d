//! A finished ranking as the feed serves it, before it is kept as a snapshot.

use super::degraded::DegradedParts;
use nova_model::experiments::Assignment;
use nova_model::features::CandidateSet;
use nova_model::snapshot::{Algo, ServedBy, ServedPolicy, Snapshot, SnapshotPost};
use nova_policy::loaded::LoadedPolicy;
use nova_policy::ranking::Ranking;
use nova_support::clock::unix_ms;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use uuid::Uuid;

#[derive(Debug)]
pub struct RankedFeed {
    pub ranking_id: Uuid,
    pub algo: Algo,
    pub served_by: ServedBy,
    /// Set if the timeline replaces a ranking that could not be made.
    pub fallback: bool,
    pub policy: ServedPolicy,
    pub assignment: Option<Assignment>,
    pub posts: Vec<SnapshotPost>,
    pub degraded: DegradedParts,
    pub seen_version: u64,
    /// The viewer's cache epoch, read before any store was queried. `None` if it could not be
    /// read.
    pub epoch: Option<u64>,
    /// Set if the candidates came from the cache.
    pub cache_hit: bool,
}

impl RankedFeed {
    /// The snapshot that the pages of this ranking are served from.
    pub fn into_snapshot(self, viewer: u64) -> Snapshot {
        Snapshot {
            ranking_id: self.ranking_id,
            viewer,
            algo: self.algo,
            served_by: self.served_by,
            fallback: self.fallback,
            degraded: self.degraded.names(),
            policy: self.policy,
            assignment: self.assignment,
            created: Instant::now(),
            created_at_ms: unix_ms(),
            seen_version: self.seen_version,
            posts: self.posts,
            first_page: OnceLock::new(),
            whole_in: AtomicU64::new(0),
        }
    }
}

/// The identity of a policy, as a response names it.
pub fn served_policy(policy: &LoadedPolicy) -> ServedPolicy {
    ServedPolicy {
        name: policy.spec.policy.name.as_str().into(),
        version: policy.spec.policy.version.to_string().into(),
        effective_digest: policy.effective_digest,
        digest_hex: policy.digest_hex.clone(),
    }
}

/// Returns the posts of a ranking, in display order.
pub fn ranked_posts(set: &CandidateSet, ranking: &Ranking, scored: bool) -> Vec<SnapshotPost> {
    ranking
        .rows
        .iter()
        .zip(&ranking.scores)
        .map(|(&row, &score)| {
            let row = row as usize;
            SnapshotPost {
                post_id: set.post_ids[row],
                author_id: set.author_ids[row],
                created_at_ms: set.created_at_ms[row],
                counters: set.counters[row],
                score: scored.then_some(score),
                sources: set.sources[row],
            }
        })
        .collect()
}
