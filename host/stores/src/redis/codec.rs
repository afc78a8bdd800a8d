//! The binary encoding of snapshots and candidates: a format byte, then the fields in postcard's
//! encoding, which stores no field names and keeps small integers short. Bytes that do not
//! decode completely, or that belong to another viewer or ranking, count as a missing value.
//!
//! Ages are stored as wall-clock times, because a monotonic clock means nothing on another
//! host. A host whose clock is behind takes a value for younger than it is; the expiry in
//! Redis limits that error.

use nova_model::artifact::Digest;
use nova_model::experiments::Assignment;
use nova_model::features::CandidateSet;
use nova_model::snapshot::{
    Algo, CachedCandidates, ServedBy, ServedPolicy, Snapshot, SnapshotPost,
};
use nova_model::time::UnixMs;
use nova_support::clock::unix_ms;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Must be raised when a stored type, or a type within it, changes its fields or their order.
const FORMAT: u8 = 1;

#[derive(Serialize, Deserialize)]
struct StoredSnapshot<'a> {
    ranking_id: Uuid,
    viewer: u64,
    algo: Algo,
    served_by: ServedBy,
    fallback: bool,
    degraded: Cow<'a, [String]>,
    policy_name: Cow<'a, str>,
    policy_version: Cow<'a, str>,
    effective_digest: Digest,
    /// Experiment and variation.
    assignment: Option<(Cow<'a, str>, Cow<'a, str>)>,
    created_at_ms: UnixMs,
    seen_version: u64,
    posts: Cow<'a, [SnapshotPost]>,
}

#[derive(Serialize, Deserialize)]
struct StoredCandidates<'a> {
    viewer: u64,
    fetched_at_ms: UnixMs,
    set: Cow<'a, CandidateSet>,
}

/// Encodes a snapshot.
///
/// # Errors
/// No value of these types can cause an error.
pub fn encode_snapshot(snapshot: &Snapshot) -> anyhow::Result<Vec<u8>> {
    let stored = StoredSnapshot {
        ranking_id: snapshot.ranking_id,
        viewer: snapshot.viewer,
        algo: snapshot.algo,
        served_by: snapshot.served_by,
        fallback: snapshot.fallback,
        degraded: Cow::Borrowed(&snapshot.degraded),
        policy_name: Cow::Borrowed(&snapshot.policy.name),
        policy_version: Cow::Borrowed(&snapshot.policy.version),
        effective_digest: snapshot.policy.effective_digest,
        assignment: snapshot.assignment.as_ref().map(|assignment| {
            let Assignment {
                experiment,
                variation,
            } = assignment;
            (Cow::Borrowed(&**experiment), Cow::Borrowed(&**variation))
        }),
        created_at_ms: snapshot.created_at_ms,
        seen_version: snapshot.seen_version,
        posts: Cow::Borrowed(&snapshot.posts),
    };
    encode(&stored)
}

/// Decodes a snapshot. Returns `None` if the bytes are not the snapshot of this ranking.
pub fn decode_snapshot(bytes: &[u8], ranking_id: Uuid) -> Option<Snapshot> {
    let stored: StoredSnapshot<'static> = decode(bytes)?;
    if stored.ranking_id != ranking_id {
        return None;
    }
    Some(Snapshot {
        ranking_id,
        viewer: stored.viewer,
        algo: stored.algo,
        served_by: stored.served_by,
        fallback: stored.fallback,
        degraded: stored.degraded.into_owned(),
        policy: ServedPolicy {
            name: stored.policy_name.into(),
            version: stored.policy_version.into(),
            effective_digest: stored.effective_digest,
            digest_hex: stored.effective_digest.to_string().into(),
        },
        assignment: stored.assignment.map(|(experiment, variation)| Assignment {
            experiment: experiment.into(),
            variation: variation.into(),
        }),
        created: instant_of(stored.created_at_ms)?,
        created_at_ms: stored.created_at_ms,
        seen_version: stored.seen_version,
        posts: stored.posts.into_owned(),
        first_page: OnceLock::new(),
        whole_in: AtomicU64::new(0),
    })
}

/// Encodes candidates.
///
/// # Errors
/// No value of these types can cause an error.
pub fn encode_candidates(viewer: u64, candidates: &CachedCandidates) -> anyhow::Result<Vec<u8>> {
    let age_ms = u64::try_from(candidates.fetched.elapsed().as_millis()).unwrap_or(u64::MAX);
    encode_candidates_of(viewer, unix_ms().saturating_sub(age_ms), &candidates.set)
}

pub(super) fn encode_candidates_of(
    viewer: u64,
    fetched_at_ms: UnixMs,
    set: &CandidateSet,
) -> anyhow::Result<Vec<u8>> {
    encode(&StoredCandidates {
        viewer,
        fetched_at_ms,
        set: Cow::Borrowed(set),
    })
}

/// Decodes candidates. Returns `None` if the bytes are not candidates of this viewer.
pub fn decode_candidates(bytes: &[u8], viewer: u64) -> Option<CachedCandidates> {
    let stored: StoredCandidates<'static> = decode(bytes)?;
    let set = stored.set.into_owned();
    (stored.viewer == viewer && set.has_even_columns()).then_some(())?;
    Some(CachedCandidates {
        set: Arc::new(set),
        fetched: instant_of(stored.fetched_at_ms)?,
    })
}

/// Converts a wall-clock time to this host's monotonic clock. A time in the future
/// becomes the current time.
fn instant_of(at_ms: UnixMs) -> Option<Instant> {
    Instant::now().checked_sub(Duration::from_millis(unix_ms().saturating_sub(at_ms)))
}

fn encode<T: Serialize>(value: &T) -> anyhow::Result<Vec<u8>> {
    Ok(postcard::to_extend(value, vec![FORMAT])?)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (&format, body) = bytes.split_first()?;
    if format != FORMAT {
        return None;
    }
    let (value, rest) = postcard::take_from_bytes(body).ok()?;
    rest.is_empty().then_some(value)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
pub(super) mod tests {
    use super::*;
    use nova_model::features::Sources;
    use nova_model::post::Counters;
    use proptest::prelude::*;

    fn post(n: u64) -> SnapshotPost {
        let mut sources = Sources::FOLLOWEES;
        sources.insert(Sources::TRENDING);
        SnapshotPost {
            post_id: (1 << 53) - n,
            author_id: n + 1,
            created_at_ms: 1_750_000_000_000 + n,
            counters: Counters {
                views: u64::MAX,
                likes: n,
                ..Counters::default()
            },
            score: n.is_multiple_of(2).then_some(n as f32 / 3.0),
            sources,
        }
    }

    fn snapshot(posts: u64) -> Snapshot {
        Snapshot {
            ranking_id: Uuid::now_v7(),
            viewer: 7,
            algo: Algo::Timeline,
            served_by: ServedBy::LastGood,
            fallback: true,
            degraded: vec!["policy".into(), "clickhouse".into()],
            policy: ServedPolicy::native(Algo::Ranked),
            assignment: Some(Assignment {
                experiment: "does-recency-help".into(),
                variation: "größer".into(),
            }),
            created: Instant::now(),
            created_at_ms: unix_ms(),
            seen_version: u64::MAX,
            posts: (0..posts).map(post).collect(),
            first_page: OnceLock::new(),
            whole_in: AtomicU64::new(3),
        }
    }

    fn candidates(rows: u64) -> CachedCandidates {
        let set = CandidateSet {
            post_ids: (0..rows).collect(),
            author_ids: (0..rows).map(|row| row + 1).collect(),
            created_at_ms: (0..rows).map(|row| row + 2).collect(),
            sources: (0..rows).map(|_| Sources::RECENT).collect(),
            counters: (0..rows).map(|row| post(row).counters).collect(),
            affinity: (0..rows).map(|row| row * row).collect(),
            author_recent_impressions: (0..rows).map(|row| row % 3).collect(),
        };
        CachedCandidates {
            set: Arc::new(set),
            fetched: Instant::now(),
        }
    }

    #[test]
    fn a_snapshot_survives_a_round_trip_without_its_host_local_state() {
        let original = snapshot(300);
        let bytes = encode_snapshot(&original).unwrap();
        let found = decode_snapshot(&bytes, original.ranking_id).unwrap();
        assert_eq!(found.ranking_id, original.ranking_id);
        assert_eq!(found.viewer, original.viewer);
        assert_eq!(found.algo, original.algo);
        assert_eq!(found.served_by, original.served_by);
        assert_eq!(found.fallback, original.fallback);
        assert_eq!(found.degraded, original.degraded);
        assert_eq!(found.policy, original.policy);
        assert_eq!(found.assignment, original.assignment);
        assert_eq!(found.created_at_ms, original.created_at_ms);
        assert_eq!(found.seen_version, original.seen_version);
        assert_eq!(found.posts, original.posts);
        assert!(found.first_page.get().is_none());
        assert_eq!(found.whole_in.into_inner(), 0);
    }

    #[test]
    fn an_age_survives_a_round_trip() {
        let age = Duration::from_secs(90);
        let mut original = candidates(3);
        original.fetched = Instant::now().checked_sub(age).unwrap();
        let bytes = encode_candidates(7, &original).unwrap();
        let found = decode_candidates(&bytes, 7).unwrap();
        assert_eq!(*found.set, *original.set);
        let difference = found.fetched.elapsed().abs_diff(original.fetched.elapsed());
        assert!(difference < Duration::from_secs(30), "{difference:?}");

        let mut original = snapshot(0);
        original.created_at_ms -= 90_000;
        let bytes = encode_snapshot(&original).unwrap();
        let found = decode_snapshot(&bytes, original.ranking_id).unwrap();
        assert!(found.created.elapsed() >= age);
    }

    #[test]
    fn bytes_of_another_viewer_or_ranking_are_rejected() {
        let bytes = encode_candidates(7, &candidates(3)).unwrap();
        assert!(decode_candidates(&bytes, 8).is_none());
        let bytes = encode_snapshot(&snapshot(3)).unwrap();
        assert!(decode_snapshot(&bytes, Uuid::now_v7()).is_none());
    }

    #[test]
    fn columns_of_different_lengths_are_rejected() {
        let mut uneven = (*candidates(3).set).clone();
        uneven.affinity.pop();
        let uneven = CachedCandidates {
            set: Arc::new(uneven),
            fetched: Instant::now(),
        };
        assert!(decode_candidates(&encode_candidates(7, &uneven).unwrap(), 7).is_none());
    }

    #[test]
    fn other_formats_and_truncated_or_extended_bytes_are_rejected() {
        let original = snapshot(3);
        let ranking = original.ranking_id;
        let bytes = encode_snapshot(&original).unwrap();
        for end in 0..bytes.len() {
            assert!(decode_snapshot(&bytes[..end], ranking).is_none(), "{end}");
        }
        for format in (0..=u8::MAX).filter(|format| *format != FORMAT) {
            let mut foreign = bytes.clone();
            foreign[0] = format;
            assert!(decode_snapshot(&foreign, ranking).is_none(), "{format}");
        }
        assert!(decode_snapshot(&[&bytes[..], b"\0"].concat(), ranking).is_none());
    }

    proptest! {
        #[test]
        fn random_bytes_are_rejected(mut bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            prop_assert!(decode_snapshot(&bytes, Uuid::from_u128(1)).is_none());
            bytes.insert(0, FORMAT);
            prop_assert!(decode_snapshot(&bytes, Uuid::from_u128(1)).is_none());
            prop_assert!(decode_candidates(&bytes, 1 << 52).is_none());
        }
    }
}
