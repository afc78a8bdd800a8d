//! A stored `registry/local_changes.json`, in `tests/fixtures/formats`: one change of each kind.

use super::*;
use nova_model::local_change::Intent;
use nova_model::quarantine::Quarantine;

const STORED: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/formats/v1/registry/local_changes.json"
));
/// The same changes with the hash of the revision on which they are based, which later versions
/// write.
const STORED_WITH_HEAD: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/formats/v1/registry/local_changes_head.json"
));
const HEAD: &str = "3f1aa465c58c67f293d95f3f689bb810b151a29583f091ad9652dbd7b2965472";
const HOST: &str = "5b0c3f9e-6a55-4b6e-9d0a-0f3f0a9d1c11";

fn change(id: u8, actor: &str, intent: Intent) -> LocalChange {
    LocalChange {
        id: Uuid::from_u128(0x0197_a000_0000_7000_8000_0000_0000_0000 + u128::from(id)),
        host: HOST.into(),
        intent,
        actor: actor.into(),
        made_at_ms: 1_749_999_999_000 + u64::from(id) * 1_000,
        base_revision: 21,
        base_head: None,
    }
}

fn expected() -> Vec<LocalChange> {
    let policy = |text: &str| text.parse().unwrap();
    let digest = "bdc43cd69ed5cab1fbc806e62a3e8f6e743e604f54d879ddb3eb3655219a3b37";
    let rollback = Intent::Rollback {
        from: policy("timeline@1.0.0"),
        to: policy("baseline@1.0.0"),
        reason: "complaints".into(),
    };
    let stop = Intent::StopExperiment {
        key: "recency".into(),
    };
    let quarantine = Intent::Quarantine {
        digest: digest.parse().unwrap(),
        quarantine: Quarantine {
            policy: policy("baseline@1.4.0"),
            reason: "it shows old posts".into(),
            by: "ada".into(),
            at_ms: 1_750_000_002_000,
        },
    };
    vec![
        change(1, "ada", rollback),
        change(2, "ben", stop),
        change(3, "ada", quarantine),
    ]
}

#[tokio::test]
async fn stored_local_changes_are_read_and_written_again_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    for (stored, base_head) in [
        (STORED, None),
        (STORED_WITH_HEAD, Some(HEAD.parse().unwrap())),
    ] {
        let expected = expected().into_iter().map(|change| LocalChange {
            base_head,
            ..change
        });
        let expected: Vec<_> = expected.collect();
        std::fs::write(&path, stored).unwrap();
        let changes = LocalChanges::open(directory.path(), HOST.into()).unwrap();
        assert_eq!(changes.list(), expected);
        std::fs::remove_file(&path).unwrap();
        let changes = LocalChanges::open(directory.path(), HOST.into()).unwrap();
        for change in expected {
            changes.add(change).await.unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), stored);
    }
}
