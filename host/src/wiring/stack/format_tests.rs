//! A stored host id, in `tests/fixtures/formats`.

use super::*;

const STORED: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/fixtures/formats/v1/keys/host.id"
));

#[test]
fn a_stored_host_id_is_read_and_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("host.id");
    std::fs::write(&path, STORED).unwrap();
    let id = host_id(directory.path()).unwrap();
    assert_eq!(id, "5b0c3f9e-6a55-4b6e-9d0a-0f3f0a9d1c11");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), STORED);
}
