//! Stored records, in `tests/fixtures/formats`: one that a released program wrote, and two that
//! have what it lacks.

use super::*;
use crate::replay::policies::Library;
use crate::replay::run::run;
use nova_model::features::Sources;
use nova_model::post::Counters;
use nova_policy::engine::Engine;
use nova_stores::records::{RecordStore, Selection};

macro_rules! stored {
    ($name:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/formats/v1/",
            $name
        ))
    };
}

fn assert_record(stored: &[u8], expected: &Record) {
    let found = Record::decode(stored).unwrap();
    assert_eq!(found, *expected);
    let bits = |record: &Record| -> Vec<u32> {
        let scores = record.answer.scores.iter();
        scores.map(|score| score.to_bits()).collect()
    };
    assert_eq!(bits(&found), bits(expected));
    assert_eq!(
        expected.encode().escape_ascii().to_string(),
        stored.escape_ascii().to_string()
    );
}

fn identity(label: &str, effective_digest: Digest) -> PolicyIdentity {
    PolicyIdentity {
        label: label.into(),
        effective_digest,
    }
}

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

fn failure() -> Record {
    let mut all = Sources::FOLLOWEES;
    [Sources::AFFINITY, Sources::TRENDING, Sources::RECENT]
        .into_iter()
        .for_each(|source| all.insert(source));
    Record {
        why: Why::Failure,
        ranking_id: Uuid::from_u128(0x0197_a000_0000_7000_8000_0000_0000_002a),
        request_id: "0197a000-0000-7000-8000-000000000001".into(),
        user_id: 42,
        now_ms: 1_750_000_000_000,
        seed: u64::MAX,
        limit: 50,
        routed: Some(identity("baseline@1.2.0", Digest::from_content(b"routed"))),
        assignment: Some(("recency".into(), "fresh".into())),
        answer: Answer {
            served_by: ServedBy::Native,
            policy: identity("native", Digest::from_content(b"native")),
            rows: vec![1, 0],
            scores: vec![0.1, -0.0],
        },
        candidates: CandidateSet {
            post_ids: vec![1, (1 << 53) - 1],
            author_ids: vec![2, 300],
            created_at_ms: vec![1_750_000_000_000, 1_750_000_000_001],
            sources: vec![Sources::TRENDING, all],
            counters: vec![counters(10), counters(u64::MAX - 5)],
            affinity: vec![4, 500],
            author_recent_impressions: vec![5, 600],
        },
        seen: vec![false, true],
    }
}

fn of_a_viewer() -> Record {
    Record {
        why: Why::Viewer,
        ranking_id: Uuid::from_u128(1),
        request_id: "r".into(),
        user_id: 7,
        seed: 0,
        limit: 1,
        routed: None,
        assignment: None,
        answer: Answer {
            served_by: ServedBy::Policy,
            policy: identity("baseline@1.0.0", Digest::from_content(b"b")),
            rows: Vec::new(),
            scores: Vec::new(),
        },
        candidates: CandidateSet::default(),
        seen: Vec::new(),
        ..failure()
    }
}

#[test]
fn stored_records_are_read_and_encoded_again_to_the_same_bytes() {
    assert_record(stored!("replay/failure.bin"), &failure());
    assert_record(stored!("replay/viewer.bin"), &of_a_viewer());
}

#[test]
fn a_record_of_a_released_program_is_read_and_encoded_again_to_the_same_bytes() {
    let stored = stored!("replay/sampled.bin");
    let found = Record::decode(stored).unwrap();
    assert_eq!(found.why, Why::Sampled);
    let ranking_id = 0x01a2_2d2b_6ca8_701e_954a_d114_f9e8_8ac1;
    assert_eq!(found.ranking_id, Uuid::from_u128(ranking_id));
    assert_eq!(found.request_id, "01a22d2b-6ca6-77f4-ad88-3041bda4267d");
    assert_eq!((found.user_id, found.limit), (42, 2));
    assert_eq!(found.now_ms, 1_796_054_150_312);
    assert_eq!(found.answer.served_by, ServedBy::Policy);
    assert_eq!(found.routed.as_ref(), Some(&found.answer.policy));
    let assignment = ("recency".to_owned(), "fresh".to_owned());
    assert_eq!(found.assignment, Some(assignment));
    assert_eq!(found.candidates.len(), 8);
    assert_eq!(found.answer.rows.len(), 8);
    assert_record(stored, &found);
}

/// The file has the modules too, so their interface and the engine are a part of the promise.
#[tokio::test]
async fn rankings_that_a_released_program_recorded_are_repeated_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.db");
    std::fs::write(&path, stored!("records/records.db")).unwrap();
    let mut store = RecordStore::open_to_read(&path).await.unwrap();
    let engine = Engine::start().unwrap();
    let library = Library::open(engine, &mut store, None).await.unwrap();
    assert!(library.unavailable().is_empty());
    let (all, progress) = (Selection::default(), std::sync::Arc::new(|_| {}));
    let report = run(&mut store, all, library, Vec::new(), 1, progress).await;
    let check = report.unwrap().check;
    assert_eq!((check.exact, check.mismatched), (2, 0));
}
