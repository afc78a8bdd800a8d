//! A stored key, in `tests/fixtures/formats`.

use super::*;
use std::os::unix::fs::PermissionsExt;

const STORED: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/formats/v1/keys/jwt.key"
));

#[test]
fn a_stored_key_is_read_and_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwt.key");
    std::fs::write(&path, STORED).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let key = load_or_make_file(&path).unwrap();
    let expected = "a83bbac143de39c0900ae9d820ac7a7cc2f4eafff1fa8c52fab800f21f52d894";
    assert_eq!(hex::encode(key.as_bytes()), expected);
    assert_eq!(std::fs::read(&path).unwrap(), STORED);
}
