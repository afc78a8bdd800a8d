//! Tests of the bounds, the selections and the export of stored records.

use super::*;
use nova_model::artifact::{Limits, PerStage, StageSpec};
use std::collections::BTreeMap;

const NOW_MS: UnixMs = 1_750_000_000_000;
const UNBOUNDED: Bounds = Bounds {
    bytes_max: u64::MAX >> 1,
    age_max: Duration::from_secs(3_600),
};

fn spec(module: &[u8]) -> PolicySpec {
    let stage = || StageSpec {
        module: Digest::from_content(module),
        params: BTreeMap::new(),
    };
    PolicySpec {
        policy: "p@1.0.0".parse().unwrap(),
        description: String::new(),
        stages: PerStage {
            dedup: stage(),
            score: stage(),
            saturation: stage(),
        },
        limits: Limits::default(),
        signature: None,
    }
}

/// Returns a record made at an instant and ranked by a policy. The store does not look into its
/// bytes, so the viewer's id stands for them.
fn made(at_ms: UnixMs, user_id: u64, policy: &PolicySpec) -> Encoded {
    Encoded {
        recorded_ms: at_ms,
        user_id,
        why: "sampled",
        routed: policy.digest(),
        served: policy.digest(),
        bytes: user_id.to_le_bytes().repeat(200),
    }
}

async fn users(store: &mut RecordStore, selection: Selection) -> Vec<u64> {
    let from = store.start_of(selection).await.unwrap();
    let stored = store.read_after(from, selection, 1_000).await.unwrap();
    stored
        .iter()
        .map(|stored| u64::from_le_bytes(*stored.bytes.first_chunk().unwrap()))
        .collect()
}

#[tokio::test]
async fn a_full_store_keeps_the_newest_records_within_its_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = RecordStore::open(directory.path()).await.unwrap();
    let policy = spec(b"module");
    store
        .put_policy(
            &policy,
            &[(Digest::from_content(b"module"), b"module".to_vec())],
        )
        .await
        .unwrap();
    let records: Vec<Encoded> = (1..=50).map(|user| made(NOW_MS, user, &policy)).collect();
    let each = records[0].size_bytes();
    store.append(&records).await.unwrap();
    let bounds = Bounds {
        bytes_max: 20 * each,
        ..UNBOUNDED
    };
    assert!(store.prune(NOW_MS, bounds).await.unwrap() >= 30);
    assert!(store.bytes().await.unwrap() <= bounds.bytes_max);
    let kept = users(&mut store, Selection::default()).await;
    assert!(kept.len() >= 15, "{kept:?}");
    assert!(kept.iter().copied().eq(51 - kept.len() as u64..=50));
    assert_eq!(store.prune(NOW_MS, bounds).await.unwrap(), 0);
}

#[tokio::test]
async fn records_that_are_too_old_are_removed_with_their_policy() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = RecordStore::open(directory.path()).await.unwrap();
    let (old, new) = (spec(b"old"), spec(b"new"));
    for (policy, module) in [(&old, b"old"), (&new, b"new")] {
        store
            .put_policy(policy, &[(Digest::from_content(module), module.to_vec())])
            .await
            .unwrap();
    }
    let records = [
        made(NOW_MS - 3_600_001, 1, &old),
        made(NOW_MS - 3_600_000, 2, &new),
    ];
    store.append(&records).await.unwrap();
    assert_eq!(store.prune(NOW_MS, UNBOUNDED).await.unwrap(), 1);
    assert_eq!(users(&mut store, Selection::default()).await, [2]);
    assert_eq!(store.policies().await.unwrap(), [new]);
    assert_eq!(
        store.module(Digest::from_content(b"old")).await.unwrap(),
        None
    );
    assert!(
        store
            .module(Digest::from_content(b"new"))
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn a_selection_returns_the_newest_matching_records() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = RecordStore::open(directory.path()).await.unwrap();
    let policy = spec(b"m");
    let mut records: Vec<Encoded> = [1, 2, 1, 3, 1]
        .map(|user| made(NOW_MS, user, &policy))
        .into();
    records[1].why = "failure";
    store.append(&records).await.unwrap();
    let all = Selection::default();
    let newest = Selection {
        limit: Some(2),
        ..all
    };
    let of_one = Selection {
        user_id: Some(1),
        ..newest
    };
    let failures = Selection {
        failures: true,
        ..all
    };
    assert_eq!(users(&mut store, all).await, [1, 2, 1, 3, 1]);
    assert_eq!(users(&mut store, newest).await, [3, 1]);
    assert_eq!(users(&mut store, of_one).await, [1, 1]);
    assert_eq!(users(&mut store, failures).await, [2]);
    assert_eq!(store.count(of_one).await.unwrap(), 2);
}

#[tokio::test]
async fn an_export_is_one_file_with_everything_a_replay_needs() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = RecordStore::open(directory.path()).await.unwrap();
    let policy = spec(b"m");
    store
        .put_policy(&policy, &[(Digest::from_content(b"m"), b"m".to_vec())])
        .await
        .unwrap();
    store.append(&[made(NOW_MS, 7, &policy)]).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("week.records");
    store.export(&file).await.unwrap();
    assert!(store.export(&file).await.is_err());
    let names: Vec<_> = std::fs::read_dir(elsewhere.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["week.records"]);
    let mut read = RecordStore::open_to_read(&file).await.unwrap();
    assert_eq!(users(&mut read, Selection::default()).await, [7]);
    assert_eq!(read.policies().await.unwrap(), [policy]);
    assert!(
        read.module(Digest::from_content(b"m"))
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn a_file_without_records_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x");
    std::fs::write(&file, "something else").unwrap();
    assert!(RecordStore::open_to_read(&file).await.is_err());
    let error = RecordStore::open_to_read(&directory.path().join("nowhere"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("data directory"), "{error}");
}
