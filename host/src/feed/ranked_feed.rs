//! A finished ranking as the feed serves it.

use nova_model::features::CandidateSet;
use nova_model::snapshot::{ServedPolicy, SnapshotPost};
use nova_policy::loaded::LoadedPolicy;
use nova_policy::ranking::Ranking;

/// The identity of a policy, as an answer names it.
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
