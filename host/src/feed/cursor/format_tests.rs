//! A stored cursor, in `tests/fixtures/formats`, that a released program gave to viewer 1.

use super::*;

const STORED: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/fixtures/formats/v1/cursor.txt"
));

#[test]
fn a_stored_cursor_is_read_and_encoded_again_to_the_same_text() {
    let key = CursorKey::of_test(b"nova-format-fixture-secret-of-40-bytes!!");
    let cursor = Cursor {
        ranking_id: Uuid::from_u128(0x01a2_2d2b_6c98_71e4_87ee_b786_61c8_7f03),
        position: 2,
    };
    assert_eq!(key.decode(1, STORED), Ok(cursor));
    assert_eq!(key.encode(1, cursor), STORED);
}
