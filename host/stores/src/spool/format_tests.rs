//! A stored spool, in `tests/fixtures/formats`: six events that wait for the drain, the claims
//! on them, and the seen posts.

use super::writer::connect;
use super::*;
use nova_model::event::Action;
use uuid::Uuid;

const STORED: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/formats/v1/spool/spool.db"
));

fn expected() -> Vec<Entry> {
    let event = |(at, action): (usize, Action)| Entry {
        id: 7 + at as i64,
        event: AcceptedEvent {
            event_id: Uuid::from_u128(0x0197_b000_0000_7000_8000_0000_0000_0000 + at as u128),
            event_time_ms: 1_796_054_154_500,
            accepted_ms: 1_796_054_154_495,
            user_id: 1,
            post_id: 102,
            author_id: 3,
            action,
            dwell_ms: (action == Action::Dwell).then_some(1_200),
            device: "größer".into(),
            app_ver: "1.2.3".into(),
            ranking_id: (action == Action::View)
                .then_some(Uuid::from_u128(0x01a2_2d2b_6ca8_701e_954a_d114_f9e8_8ac1)),
        },
    };
    Action::ALL.into_iter().enumerate().map(event).collect()
}

fn copy() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("spool.db"), STORED).unwrap();
    directory
}

#[tokio::test]
async fn a_stored_spool_is_read_with_its_events_claims_and_seen_posts() {
    let directory = copy();
    let spool = Spool::open(directory.path(), 1 << 20, 0).await.unwrap();
    assert_eq!(spool.pending(), 6);
    assert_eq!(spool.read(0, 10).await.unwrap(), (expected(), Some(12)));
    let seen = spool.seen_since(1, 0).await.unwrap();
    assert_eq!(seen, [(101, 1_796_054_150_319), (102, 1_796_054_154_495)]);
    let repeated = expected().into_iter().map(|entry| entry.event).collect();
    let accepted = spool.append(repeated).await.unwrap();
    assert_eq!(accepted.known, [0, 1, 2, 3, 4, 5]);
    let mut new = expected().remove(0).event;
    (new.event_id, new.post_id) = (Uuid::from_u128(1), 103);
    spool.append(vec![new.clone()]).await.unwrap();
    let (entries, _) = spool.read(12, 10).await.unwrap();
    assert_eq!(entries, [Entry { id: 13, event: new }]);
}

#[tokio::test]
async fn the_text_of_a_stored_event_is_encoded_again_to_the_same_bytes() {
    let directory = copy();
    let mut connection = connect(&directory.path().join("spool.db")).await.unwrap();
    let texts = sqlx::query_scalar("SELECT event FROM entries ORDER BY id");
    let texts: Vec<String> = texts.fetch_all(&mut connection).await.unwrap();
    let encode = |entry: Entry| serde_json::to_string(&entry.event).unwrap();
    let encoded: Vec<String> = expected().into_iter().map(encode).collect();
    assert_eq!(encoded, texts);
}

#[tokio::test]
async fn a_stored_spool_has_the_tables_of_a_new_one() {
    let (old, new) = (copy(), tempfile::tempdir().unwrap());
    let mut schemas = Vec::new();
    for directory in [&old, &new] {
        let mut connection = connect(&directory.path().join("spool.db")).await.unwrap();
        schemas.push(crate::embedded::format_tests::schema_of(&mut connection).await);
    }
    assert_eq!(schemas[0], schemas[1]);
}
