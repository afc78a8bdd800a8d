//! The stored values in `tests/fixtures/formats` that Redis holds.

use super::bloom::{self, Filter, Hash};
use super::cache::epoch_of;
use super::claims::names;
use super::codec::{decode_candidates, decode_snapshot, encode_candidates_of, encode_snapshot};
use super::keys;
use super::seen::version_of;
use super::tombstones::{PublishedTombstone, decode};
use nova_model::artifact::Digest;
use nova_model::event::{AcceptedEvent, Action};
use nova_model::experiments::Assignment;
use nova_model::features::{CandidateSet, Sources};
use nova_model::post::Counters;
use nova_model::snapshot::{Algo, ServedBy, ServedPolicy, Snapshot, SnapshotPost};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use uuid::Uuid;

macro_rules! stored {
    ($name:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/formats/v1/redis/",
            $name
        ))
    };
}

/// Compares bytes in a form that can be read and copied.
fn assert_same(encoded: &[u8], stored: &[u8]) {
    assert_eq!(
        encoded.escape_ascii().to_string(),
        stored.escape_ascii().to_string()
    );
}

/// 2100-01-01. A stored time in the future decodes on every machine, also on one that was
/// started a moment ago, because it counts as the current time.
const LATER_MS: u64 = 4_102_444_800_000;

fn counters(first: u64) -> Counters {
    Counters {
        views: first,
        likes: first + 1,
        comments: first + 2,
        shares: first + 3,
        dwell_ms_sum: first + 4,
        exposures: first + 5,
    }
}

fn candidates() -> CandidateSet {
    let mut all = Sources::FOLLOWEES;
    [Sources::AFFINITY, Sources::TRENDING, Sources::RECENT]
        .into_iter()
        .for_each(|source| all.insert(source));
    CandidateSet {
        post_ids: vec![1, (1 << 53) - 1],
        author_ids: vec![2, 300],
        created_at_ms: vec![1_750_000_000_000, 1_750_000_000_001],
        sources: vec![Sources::TRENDING, all],
        counters: vec![counters(10), counters(u64::MAX - 5)],
        affinity: vec![4, 500],
        author_recent_impressions: vec![5, 600],
    }
}

#[test]
fn stored_candidates_are_read_and_encoded_again_to_the_same_bytes() {
    let stored = stored!("candidates.bin");
    let found = decode_candidates(stored, 42).unwrap();
    assert_eq!(*found.set, candidates());
    assert!(decode_candidates(stored, 43).is_none());
    let encoded = encode_candidates_of(42, LATER_MS, &candidates()).unwrap();
    assert_same(&encoded, stored);
}

fn post(post_id: u64, score: Option<f32>, sources: Sources) -> SnapshotPost {
    SnapshotPost {
        post_id,
        author_id: post_id + 1,
        created_at_ms: 1_750_000_000_000 + post_id,
        counters: counters(post_id),
        score,
        sources,
    }
}

fn ranked() -> Snapshot {
    let digest = Digest::from_content(b"effective");
    Snapshot {
        ranking_id: Uuid::from_u128(0x0197_a000_0000_7000_8000_0000_0000_002a),
        viewer: 42,
        algo: Algo::Ranked,
        served_by: ServedBy::LastGood,
        fallback: false,
        degraded: vec!["policy".into(), "clickhouse".into()],
        policy: ServedPolicy {
            name: "baseline".into(),
            version: "1.2.0".into(),
            effective_digest: digest,
            digest_hex: digest.to_string().into(),
        },
        assignment: Some(Assignment {
            experiment: "recency".into(),
            variation: "größer".into(),
        }),
        created: Instant::now(),
        created_at_ms: LATER_MS,
        seen_version: u64::MAX,
        posts: vec![
            post(7, Some(0.1), Sources::FOLLOWEES),
            post(8, Some(-0.0), Sources::AFFINITY),
        ],
        first_page: OnceLock::new(),
        whole_in: AtomicU64::new(0),
    }
}

fn timeline() -> Snapshot {
    Snapshot {
        ranking_id: Uuid::from_u128(1),
        algo: Algo::Timeline,
        served_by: ServedBy::Timeline,
        fallback: true,
        degraded: Vec::new(),
        assignment: None,
        seen_version: 0,
        posts: vec![post(9, None, Sources::RECENT)],
        ..ranked()
    }
}

fn assert_snapshot(stored: &[u8], expected: &Snapshot) {
    let found = decode_snapshot(stored, expected.ranking_id).unwrap();
    assert_eq!(found.ranking_id, expected.ranking_id);
    assert_eq!(found.viewer, expected.viewer);
    assert_eq!(found.algo, expected.algo);
    assert_eq!(found.served_by, expected.served_by);
    assert_eq!(found.fallback, expected.fallback);
    assert_eq!(found.degraded, expected.degraded);
    assert_eq!(found.policy, expected.policy);
    assert_eq!(found.assignment, expected.assignment);
    assert_eq!(found.created_at_ms, expected.created_at_ms);
    assert_eq!(found.seen_version, expected.seen_version);
    assert_eq!(found.posts, expected.posts);
    assert_same(&encode_snapshot(expected).unwrap(), stored);
}

#[test]
fn stored_snapshots_are_read_and_encoded_again_to_the_same_bytes() {
    assert_snapshot(stored!("snapshot_ranked.bin"), &ranked());
    assert_snapshot(stored!("snapshot_timeline.bin"), &timeline());
}

/// The encoding has the place of a variant and not its name.
#[test]
fn the_places_of_enum_variants_never_change() {
    let served_by = [
        ServedBy::Policy,
        ServedBy::LastGood,
        ServedBy::Native,
        ServedBy::Snapshot,
        ServedBy::Timeline,
    ];
    let encoded = postcard::to_allocvec(&(served_by, [Algo::Ranked, Algo::Timeline])).unwrap();
    assert_eq!(encoded, [0, 1, 2, 3, 4, 0, 1]);
}

#[test]
fn a_stored_pointer_epoch_and_version_are_read() {
    let ranking_id = ranked().ranking_id;
    assert_eq!(Uuid::from_slice(stored!("pointer.bin")), Ok(ranking_id));
    assert_same(ranking_id.as_bytes(), stored!("pointer.bin"));
    let epoch = stored!("epoch.txt").to_vec();
    assert_eq!(epoch_of(Some(epoch)), 17_851_744_001_873_551_360);
    let version = stored!("seen_version.txt").to_vec();
    assert_eq!(version_of(Some(version)), 9_223_372_036_854_775_809);
}

/// The posts fill the first layer and open the second.
#[test]
fn a_stored_filter_of_seen_posts_has_its_posts() {
    let posts: Vec<u64> = (1..=200).map(|n| n * 1_000_003).collect();
    let stored = stored!("seen_filter.bin");
    let filter = Filter::read(stored).unwrap();
    assert!(posts.iter().all(|post| filter.contains(Hash::new(*post))));
    assert!(!filter.contains(Hash::new(5)));
    let mut made = Vec::new();
    for posts in posts.chunks(20) {
        bloom::tests::mark(&mut made, posts);
    }
    assert_same(&made, stored);
}

fn event() -> AcceptedEvent {
    AcceptedEvent {
        event_id: Uuid::from_u128(0x0197_a000_0000_7000_8000_0000_0000_0007),
        event_time_ms: 1_750_000_000_250,
        accepted_ms: 1_750_000_000_319,
        user_id: 42,
        post_id: 8,
        author_id: 9,
        action: Action::Dwell,
        dwell_ms: Some(1_200),
        device: "ios".into(),
        app_ver: "1.2.3".into(),
        ranking_id: None,
    }
}

/// One line for each claim of the event: its idempotency key and its event id, shortened.
#[test]
fn the_stored_claims_on_an_event_are_those_of_the_event() {
    let names = names(&[event()], &[0]);
    let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
    assert_same(lines.as_bytes(), stored!("claims.txt"));
}

/// One line for each member of the sorted set, with its score.
#[test]
fn stored_tombstones_and_restorations_are_read() {
    let text = std::str::from_utf8(stored!("tombstones.txt")).unwrap();
    let entries = text.lines().map(|line| {
        let (member, score) = line.split_once(' ').unwrap();
        decode((member.parse().unwrap(), score.parse().unwrap()))
    });
    let expected = [
        (12, true, 1_750_000_000_123),
        (13, false, 1_750_000_000_124),
    ];
    let expected = expected.map(|(post_id, deleted, at_ms)| PublishedTombstone {
        post_id,
        deleted,
        at_ms,
    });
    assert_eq!(entries.collect::<Vec<_>>(), expected);
}

#[test]
fn the_names_of_keys_never_change() {
    let keys = [
        keys::candidates(42),
        keys::snapshot(ranked().ranking_id),
        keys::latest(42),
        keys::newest(42),
        keys::epoch(42),
        keys::seen(42, 162_037),
        keys::seen_version(42),
        keys::claims(42, 486_111),
        keys::lease("trending"),
        keys::DELETED.to_owned(),
        keys::DELETED_VERSIONS.to_owned(),
        keys::DELETED_CHANNEL.to_owned(),
    ];
    let lines = keys.map(|key| format!("{key}\n")).concat();
    assert_same(lines.as_bytes(), stored!("keys.txt"));
}
