//! The format of messages in `events` and `served`: JSON with a format version; the key is the
//! user id in decimal digits.
//!
//! The format is JSON because ClickHouse's own Kafka engine and every common tool can read it.
//! Encoding takes half a microsecond, so it is not the bottleneck. Members may be added within
//! a version, but must then be optional.

use super::producer::Outgoing;
use nova_model::event::AcceptedEvent;
use nova_model::event::ID_MAX;
use nova_model::exposure::Exposure;
use serde::{Deserialize, Serialize};

pub const VERSION: u8 = 1;

/// The reason why a message cannot be decoded, as it appears in `dead_letters_total` and in the
/// headers of the dead letter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    #[error("no payload")]
    Empty,
    #[error("{0}")]
    Malformed(String),
    #[error("format version {0}, and this host reads {VERSION}")]
    Version(u8),
    #[error("{0}")]
    Invalid(String),
}

impl Undecodable {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Malformed(_) => "malformed",
            Self::Version(_) => "version",
            Self::Invalid(_) => "invalid",
        }
    }
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u8,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Deserialize)]
struct VersionOnly {
    v: u8,
}

/// Encodes an accepted event for the topic `events`.
pub fn event(event: &AcceptedEvent) -> Outgoing {
    outgoing(event, event.user_id, event.accepted_ms)
}

pub(super) fn exposure(exposure: &Exposure) -> Outgoing {
    outgoing(exposure, exposure.user_id, exposure.served_at_ms)
}

fn outgoing<T: Serialize>(body: &T, user_id: u64, timestamp_ms: u64) -> Outgoing {
    let mut payload = Vec::with_capacity(384);
    // Serializing plain members into memory cannot fail: neither the types nor the writer return
    // errors.
    let _ = serde_json::to_writer(&mut payload, &Versioned { v: VERSION, body });
    Outgoing {
        key: Some(user_id.to_string().into_bytes()),
        payload,
        timestamp_ms,
        headers: None,
    }
}

/// Decodes a message of the topic `events`.
///
/// # Errors
/// Fails if the message is not a valid event. A retry cannot change that.
pub fn decode_event(payload: Option<&[u8]>) -> Result<AcceptedEvent, Undecodable> {
    let event: AcceptedEvent = decode(payload)?;
    let ids = [event.user_id, event.post_id, event.author_id];
    if ids.iter().any(|id| !(1..=ID_MAX).contains(id)) {
        return Err(Undecodable::Invalid(format!(
            "an id of {ids:?} is out of range"
        )));
    }
    Ok(event)
}

/// Decodes a message of the topic `served`.
///
/// # Errors
/// Fails if the message is not a valid exposure.
pub fn decode_exposure(payload: Option<&[u8]>) -> Result<Exposure, Undecodable> {
    decode(payload)
}

fn decode<T: for<'de> Deserialize<'de>>(payload: Option<&[u8]>) -> Result<T, Undecodable> {
    let payload = payload.ok_or(Undecodable::Empty)?;
    match serde_json::from_slice::<VersionOnly>(payload) {
        Ok(VersionOnly { v: VERSION }) => {}
        Ok(VersionOnly { v }) => return Err(Undecodable::Version(v)),
        Err(error) => return Err(Undecodable::Malformed(error.to_string())),
    }
    serde_json::from_slice(payload).map_err(|error| Undecodable::Malformed(error.to_string()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use nova_model::event::Action;
    use uuid::Uuid;

    fn view() -> AcceptedEvent {
        AcceptedEvent {
            event_id: Uuid::from_u128(1),
            event_time_ms: 1_700_000_000_000,
            accepted_ms: 1_700_000_000_123,
            user_id: 7,
            post_id: 8,
            author_id: 9,
            action: Action::View,
            dwell_ms: Some(5),
            device: "ios".to_owned(),
            app_ver: "1.0.0".to_owned(),
            ranking_id: None,
        }
    }

    #[test]
    fn an_event_survives_a_round_trip_with_its_user_as_key_and_its_acceptance_as_timestamp() {
        let message = event(&view());
        assert_eq!(message.key.as_deref(), Some(&b"7"[..]));
        assert_eq!(message.timestamp_ms, view().accepted_ms);
        assert_eq!(decode_event(Some(&message.payload)), Ok(view()));
    }

    #[test]
    fn the_wire_format_is_the_documented_one() {
        let text = String::from_utf8(event(&view()).payload).unwrap();
        assert_eq!(
            text,
            r#"{"v":1,"event_id":"00000000-0000-0000-0000-000000000001","event_time_ms":1700000000000,"accepted_ms":1700000000123,"user_id":7,"post_id":8,"author_id":9,"action":"view","dwell_ms":5,"device":"ios","app_ver":"1.0.0","ranking_id":null}"#
        );
    }

    #[test]
    fn an_undecodable_message_reports_the_reason() {
        let reason = |payload: Option<&str>| {
            decode_event(payload.map(str::as_bytes))
                .err()
                .map(|error| error.reason())
        };
        let of_version_2 = String::from_utf8(event(&view()).payload)
            .unwrap()
            .replace(r#""v":1"#, r#""v":2"#);
        let of_nobody = String::from_utf8(event(&view()).payload)
            .unwrap()
            .replace(r#""user_id":7"#, r#""user_id":0"#);
        assert_eq!(reason(None), Some("empty"));
        assert_eq!(reason(Some("{")), Some("malformed"));
        assert_eq!(reason(Some(r#"{"v":1}"#)), Some("malformed"));
        assert_eq!(reason(Some(&of_version_2)), Some("version"));
        assert_eq!(reason(Some(&of_nobody)), Some("invalid"));
    }
}
