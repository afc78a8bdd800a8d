//! The stored messages in `tests/fixtures/formats` that Kafka holds, and what it keeps of the
//! readers' progress.

use super::batch::Batch;
use super::dead_letter::{DeadLetter, outgoing};
use super::group::{note, parse_intent};
use super::message::{self, Undecodable, decode_event, decode_exposure};
use nova_model::event::{AcceptedEvent, Action};
use nova_model::exposure::Exposure;
use rdkafka::message::Headers as _;
use std::fmt::Write as _;
use uuid::Uuid;

macro_rules! stored {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/formats/v1/kafka/",
            $name
        ))
    };
}

fn text(payload: Vec<u8>) -> String {
    String::from_utf8(payload).unwrap()
}

fn dwell() -> AcceptedEvent {
    AcceptedEvent {
        event_id: Uuid::from_u128(0x0197_a000_0000_7000_8000_0000_0000_0005),
        event_time_ms: 1_750_000_000_250,
        accepted_ms: 1_750_000_000_319,
        user_id: 42,
        post_id: 8,
        author_id: 9,
        action: Action::Dwell,
        dwell_ms: Some(1_200),
        device: "größer".into(),
        app_ver: "1.2.3".into(),
        ranking_id: Some(Uuid::from_u128(0x0197_a000_0000_7000_8000_0000_0000_002a)),
    }
}

#[test]
fn a_stored_event_is_read_and_encoded_again_to_the_same_bytes() {
    let stored = stored!("event.json");
    assert_eq!(decode_event(Some(stored.as_bytes())), Ok(dwell()));
    let message = message::event(&dwell());
    assert_eq!(message.key.as_deref(), Some(&b"42"[..]));
    assert_eq!(message.timestamp_ms, 1_750_000_000_319);
    assert_eq!(text(message.payload), stored);
}

#[test]
fn a_stored_event_of_every_action_is_read() {
    let actions = ["impression", "view", "like", "comment", "share", "dwell"];
    for (name, action) in actions.into_iter().zip(Action::ALL) {
        let stored = stored!("event.json").replace(r#""dwell","#, &format!(r#""{name}","#));
        let found = decode_event(Some(stored.as_bytes())).unwrap();
        assert_eq!(found.action, action);
    }
}

fn exposure() -> Exposure {
    Exposure {
        ranking_id: Uuid::from_u128(0x0197_a000_0000_7000_8000_0000_0000_002a),
        request_id: "0197a000-0000-7000-8000-000000000001".into(),
        user_id: 42,
        served_at_ms: 1_750_000_000_100,
        served_by: "policy".into(),
        policy: "baseline@1.0.0".into(),
        effective_digest: "6927e9da53a9aacd22158387d479221f4088de7ca63506260486b51ef40597ea".into(),
        experiment: Some("recency".into()),
        variation: Some("fresh".into()),
        posts: vec![(101, "trending".into()), (100, "recent".into())],
        degraded: vec!["clickhouse".into()],
    }
}

#[test]
fn a_stored_exposure_is_read_and_encoded_again_to_the_same_bytes() {
    let stored = stored!("exposure.json");
    assert_eq!(decode_exposure(Some(stored.as_bytes())), Ok(exposure()));
    let message = message::exposure(&exposure());
    assert_eq!(message.key.as_deref(), Some(&b"42"[..]));
    assert_eq!(message.timestamp_ms, 1_750_000_000_100);
    assert_eq!(text(message.payload), stored);
}

/// People read dead letters with other tools, by these headers.
#[test]
fn the_headers_of_a_dead_letter_never_change() {
    let payload = vec![b'x'; 900_001];
    let why = Undecodable::Version(2);
    let letter = DeadLetter::new(("events", 3, 7), (Some(b"42"), Some(&payload)), &why);
    let headers = outgoing(&letter).headers.unwrap();
    let mut lines = String::new();
    for header in headers.iter() {
        let value = std::str::from_utf8(header.value.unwrap()).unwrap();
        writeln!(lines, "{}: {value}", header.key).unwrap();
    }
    assert_eq!(lines, stored!("dead_letter_headers.txt"));
}

#[test]
fn a_stored_intent_is_read_and_encoded_again_to_the_same_bytes() {
    let stored = stored!("intent.json");
    assert_eq!(parse_intent(stored), Some(1_234_567_890_123));
    assert_eq!(note(1_234_567_890_123), stored);
}

/// ClickHouse remembers the tokens of the batches that it has stored.
#[test]
fn the_insert_token_of_a_batch_never_changes() {
    let batch = Batch::<()> {
        topic: "events".into(),
        partition: 3,
        first: 17,
        last: 116,
        first_at_ms: 1_750_000_000_319,
        rows: Vec::new(),
    };
    assert_eq!(batch.token(), stored!("insert_token.txt"));
}
