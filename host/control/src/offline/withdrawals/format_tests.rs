//! A stored `registry/withdrawals.json`, in `tests/fixtures/formats`.

use super::*;

const STORED: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/formats/v1/registry/withdrawals.json"
));
const HOST: &str = "5b0c3f9e-6a55-4b6e-9d0a-0f3f0a9d1c11";

fn expected() -> OwnWithdrawal {
    let digest = "bdc43cd69ed5cab1fbc806e62a3e8f6e743e604f54d879ddb3eb3655219a3b37";
    OwnWithdrawal {
        digest: digest.parse().unwrap(),
        policy: "baseline@1.4.0".parse().unwrap(),
        reason: "5 of 62 calls in 30 s failed, for 4 viewers: trap 5".into(),
        at_ms: 1_750_000_002_000,
        base_revision: 21,
    }
}

#[tokio::test]
async fn stored_withdrawals_are_read_and_written_again_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    std::fs::write(&path, STORED).unwrap();
    let read = Withdrawals::open(directory.path(), HOST.into()).unwrap();
    assert_eq!(*read.locked(), [expected()]);
    std::fs::remove_file(&path).unwrap();
    let written = Withdrawals::open(directory.path(), HOST.into()).unwrap();
    written.save().await.unwrap();
    assert!(!path.exists(), "nothing changed, so nothing is written");
    written.add(expected());
    written.save().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), STORED);
}

#[tokio::test]
async fn a_host_remembers_a_bounded_number_of_withdrawals_and_each_digest_once() {
    let withdrawals = Withdrawals::embedded();
    for n in 0..2 * WITHDRAWALS_MAX {
        for _ in 0..2 {
            withdrawals.add(OwnWithdrawal {
                digest: Digest::from_content(&n.to_le_bytes()),
                ..expected()
            });
        }
    }
    assert_eq!(withdrawals.locked().len(), WITHDRAWALS_MAX);
}
