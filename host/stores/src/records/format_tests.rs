//! A stored file of records, in `tests/fixtures/formats`: two rankings by two policies. The test
//! of a record's own bytes is in the host, next to its type.

use super::*;
use std::collections::BTreeMap;

const STORED: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/formats/v1/records/records.db"
));
const FIRST: &str = "03ba70a1ab31c9014f03faaab05d0144ca706dd72dd374fa4bcd275e05169a83";
const SECOND: &str = "6927e9da53a9aacd22158387d479221f4088de7ca63506260486b51ef40597ea";

fn copy() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join(DIRECTORY)).unwrap();
    std::fs::write(file_in(directory.path()), STORED).unwrap();
    directory
}

#[tokio::test]
async fn a_stored_file_of_records_is_read() {
    let directory = copy();
    let mut store = RecordStore::open_to_read(directory.path()).await.unwrap();
    let all = Selection::default();
    let records = store.read_after(0, all, 10).await.unwrap();
    let found: Vec<_> = records.iter().map(|r| (r.id, r.bytes.len())).collect();
    assert_eq!(found, [(1, 394), (2, 454)]);
    let of_42 = Selection {
        user_id: Some(42),
        ..all
    };
    let failures = Selection {
        failures: true,
        ..all
    };
    assert_eq!(store.count(of_42).await.unwrap(), 1);
    assert_eq!(store.count(failures).await.unwrap(), 0);
    assert_eq!(
        store.bytes().await.unwrap(),
        522 + 582 + 35_306 + 31_866 + 29_953
    );

    let mut policies = store.policies().await.unwrap();
    policies.sort_by_key(|spec| spec.policy.clone());
    let names: BTreeMap<String, String> = policies
        .iter()
        .map(|spec| (spec.policy.to_string(), spec.digest().to_string()))
        .collect();
    let expected = [("baseline@1.0.0", SECOND), ("baseline@1.2.0", FIRST)];
    let expected = expected.map(|(policy, digest)| (policy.to_owned(), digest.to_owned()));
    assert_eq!(names, BTreeMap::from(expected));
    for module in [
        policies[0].stages.dedup.module,
        policies[0].stages.score.module,
        policies[0].stages.saturation.module,
    ] {
        assert!(store.module(module).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn the_columns_of_a_stored_record_are_found_by_their_names() {
    let directory = copy();
    let mut store = RecordStore::open(directory.path()).await.unwrap();
    let select = "SELECT id, recorded_ms, user_id, why, routed, served, bytes FROM records";
    let rows = sqlx::query_as(select).fetch_all(&mut store.connection);
    let rows: Vec<(i64, i64, i64, String, String, String, i64)> = rows.await.unwrap();
    let sampled = || "sampled".to_owned();
    let [first, second] = [FIRST, SECOND].map(str::to_owned);
    assert_eq!(
        rows,
        [
            (
                1,
                1_796_054_150_296,
                1,
                sampled(),
                first.clone(),
                first,
                522
            ),
            (
                2,
                1_796_054_150_312,
                42,
                sampled(),
                second.clone(),
                second,
                582
            ),
        ]
    );
}

#[tokio::test]
async fn a_stored_file_of_records_has_the_tables_of_a_new_one() {
    let (old, new) = (copy(), tempfile::tempdir().unwrap());
    let mut schemas = Vec::new();
    for directory in [&old, &new] {
        let mut store = RecordStore::open(directory.path()).await.unwrap();
        schemas.push(crate::embedded::format_tests::schema_of(&mut store.connection).await);
    }
    assert_eq!(schemas[0], schemas[1]);
}

#[tokio::test]
async fn the_text_of_a_stored_policy_is_encoded_again_to_the_same_bytes() {
    let directory = copy();
    let mut store = RecordStore::open(directory.path()).await.unwrap();
    let rows = sqlx::query_scalar("SELECT spec FROM policies");
    let texts: Vec<String> = rows.fetch_all(&mut store.connection).await.unwrap();
    assert_eq!(texts.len(), 2);
    for text in texts {
        let spec: PolicySpec = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&spec).unwrap(), text);
    }
}
