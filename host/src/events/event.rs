//! An event as a client sends it, and the rules it must obey.

use crate::clock::utc;
use crate::stores::{AcceptedEvent, Action, DAY_MS, UnixMs};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub const BATCH_MAX: usize = 100;
pub const DWELL_MS_MAX: i64 = 3_600_000;
/// The largest id a JavaScript client can read exactly.
pub const ID_MAX: u64 = (1 << 53) - 1;
const TOO_OLD_MS: u64 = DAY_MS;
const TOO_EARLY_MS: u64 = 5 * 60_000;
const TEXT_MAX: usize = 128;

/// The body of `POST /api/v1/events`. Members are checked one by one, so that an answer can name each that is wrong.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub struct EventBatch {
    /// 1 … 100 events.
    #[schema(value_type = Vec<EventBody>)]
    pub events: Vec<serde_json::Value>,
    /// The token's user, if anything: kept to be compared.
    #[serde(default)]
    #[schema(ignore)]
    pub user_id: Option<serde_json::Value>,
}

/// One event.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
pub struct EventBody {
    /// Made by the host when absent.
    pub event_id: Option<Uuid>,
    /// RFC 3339, at most 24 h old, at most 5 min ahead.
    pub event_time: DateTime<Utc>,
    /// 1 … 2^53 − 1.
    pub post_id: u64,
    /// 1 … 2^53 − 1.
    pub author_id: u64,
    pub action: Action,
    /// 0 … 3,600,000.
    pub dwell_ms: Option<i64>,
    /// Not empty.
    pub device: String,
    /// A semantic version.
    pub app_ver: String,
    /// The ranking that showed the post.
    pub ranking_id: Option<Uuid>,
}

/// A field such as `events[1].action` and what is wrong with it.
pub type FieldError = (String, String);

/// Checks one event; `at` is its index in the batch.
///
/// # Errors
/// Every field that is wrong.
pub fn validate(
    at: usize,
    value: &serde_json::Value,
    viewer: u64,
    now_ms: UnixMs,
) -> Result<AcceptedEvent, Vec<FieldError>> {
    let Some(object) = value.as_object() else {
        return Err(vec![(format!("events[{at}]"), "must be an object".into())]);
    };
    let mut fields = Fields {
        at,
        object,
        errors: Vec::new(),
    };
    if let Some(user) = object
        .get("user_id")
        .filter(|user| user.as_u64() != Some(viewer))
    {
        fields.refuse(
            "user_id",
            format!("{user} is not the token's user; leave user_id out"),
        );
    }
    let event_id = fields.uuid("event_id");
    let ranking_id = fields.uuid("ranking_id");
    let event_time_ms = fields.event_time(now_ms);
    let post_id = fields.id("post_id");
    let author_id = fields.id("author_id");
    let action = fields.action();
    let dwell_ms = fields.dwell_ms();
    let device = fields.text("device");
    let app_ver = fields.text("app_ver");
    if !app_ver.is_empty() && semver::Version::parse(&app_ver).is_err() {
        fields.refuse(
            "app_ver",
            format!("`{app_ver}` is not a semantic version such as 1.2.3"),
        );
    }
    match (fields.errors.is_empty(), action) {
        (true, Some(action)) => Ok(AcceptedEvent {
            event_id: event_id.unwrap_or_else(Uuid::now_v7),
            event_time_ms,
            accepted_ms: now_ms,
            user_id: viewer,
            post_id,
            author_id,
            action,
            dwell_ms,
            device,
            app_ver,
            ranking_id,
        }),
        _ => Err(fields.errors),
    }
}

/// The members of one event, read with their errors collected.
struct Fields<'a> {
    at: usize,
    object: &'a serde_json::Map<String, serde_json::Value>,
    errors: Vec<FieldError>,
}

impl Fields<'_> {
    fn refuse(&mut self, field: &str, message: String) {
        self.errors
            .push((format!("events[{}].{field}", self.at), message));
    }

    fn get(&self, field: &str) -> Option<&serde_json::Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    fn id(&mut self, field: &str) -> u64 {
        match self
            .get(field)
            .map(|value| value.as_u64().filter(|id| (1..=ID_MAX).contains(id)))
        {
            Some(Some(id)) => id,
            Some(None) => {
                self.refuse(field, "must be an integer, 1 … 9007199254740991".into());
                0
            }
            None => {
                self.refuse(field, "is required".into());
                0
            }
        }
    }

    fn text(&mut self, field: &str) -> String {
        match self.get(field).map(serde_json::Value::as_str) {
            Some(Some(text)) if !text.is_empty() && text.len() <= TEXT_MAX => text.to_owned(),
            Some(_) => {
                self.refuse(field, format!("must be a string of 1 … {TEXT_MAX} bytes"));
                String::new()
            }
            None => {
                self.refuse(field, "is required".into());
                String::new()
            }
        }
    }

    fn uuid(&mut self, field: &str) -> Option<Uuid> {
        let value = self.get(field)?;
        let parsed = value.as_str().and_then(|text| text.parse().ok());
        if parsed.is_none() {
            self.refuse(field, "must be a UUID".into());
        }
        parsed
    }

    fn event_time(&mut self, now_ms: UnixMs) -> UnixMs {
        let Some(value) = self.get("event_time") else {
            self.refuse("event_time", "is required".into());
            return 0;
        };
        let parsed = value
            .as_str()
            .and_then(|text| DateTime::parse_from_rfc3339(text).ok());
        let Some(at_ms) = parsed.and_then(|time| u64::try_from(time.timestamp_millis()).ok())
        else {
            self.refuse(
                "event_time",
                "must be an RFC 3339 time such as 2026-01-31T12:00:00Z".into(),
            );
            return 0;
        };
        if at_ms + TOO_OLD_MS < now_ms {
            self.refuse(
                "event_time",
                format!("{} is more than 24 h ago", utc(at_ms)),
            );
        } else if at_ms > now_ms + TOO_EARLY_MS {
            self.refuse(
                "event_time",
                format!(
                    "{} is more than 5 min ahead of this host's clock",
                    utc(at_ms)
                ),
            );
        }
        at_ms
    }

    fn action(&mut self) -> Option<Action> {
        let action = self
            .get("action")
            .and_then(serde_json::Value::as_str)
            .and_then(Action::parse);
        if action.is_none() {
            self.refuse(
                "action",
                "must be one of impression, view, like, comment, share, dwell".into(),
            );
        }
        action
    }

    fn dwell_ms(&mut self) -> Option<u32> {
        let value = self.get("dwell_ms")?;
        let dwell = value.as_i64().filter(|ms| (0..=DWELL_MS_MAX).contains(ms));
        if dwell.is_none() {
            self.refuse(
                "dwell_ms",
                format!("must be an integer, 0 … {DWELL_MS_MAX} ms"),
            );
        }
        dwell.and_then(|ms| u32::try_from(ms).ok())
    }
}

/// What makes two events the same: (user, post, action, whole second), shortened to 16 bytes.
pub fn idempotency_key(event: &AcceptedEvent) -> [u8; 16] {
    key(
        &[b'i', event.action as u8],
        &[event.user_id, event.post_id, event.event_time_ms / 1_000],
    )
}

/// A repeated event id of one user is a repeat whatever else it says.
pub fn event_id_key(event: &AcceptedEvent) -> [u8; 16] {
    let (high, low) = event.event_id.as_u64_pair();
    key(b"e", &[event.user_id, high, low])
}

fn key(kind: &[u8], numbers: &[u64]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    hasher.update(kind);
    for number in numbers {
        hasher.update(number.to_be_bytes());
    }
    let mut key = [0; 16];
    key.copy_from_slice(&hasher.finalize()[..16]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW_MS: u64 = 1_750_000_000_000;

    fn good() -> serde_json::Value {
        json!({"event_time": utc(NOW_MS).to_rfc3339(), "post_id": 1, "author_id": 2, "action": "view",
               "dwell_ms": 3_600_000, "device": "ios", "app_ver": "1.2.3"})
    }

    fn refused(field: &str, value: serde_json::Value) -> Vec<String> {
        let mut event = good();
        event[field] = value;
        match validate(3, &event, 7, NOW_MS) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.into_iter().map(|(field, _)| field).collect(),
        }
    }

    #[test]
    fn a_good_event_is_accepted_for_the_tokens_user() {
        let event = validate(0, &good(), 7, NOW_MS);
        assert_eq!(
            event.map(|event| (event.user_id, event.accepted_ms, event.dwell_ms)),
            Ok((7, NOW_MS, Some(3_600_000)))
        );
        assert!(refused("user_id", json!(7)).is_empty());
    }

    #[test]
    fn every_bad_field_is_named_with_its_index() {
        let hours =
            |hours: i64| json!(utc((NOW_MS as i64 + hours * 3_600_000) as u64).to_rfc3339());
        let cases = [
            ("action", json!("stare")),
            ("dwell_ms", json!(-1)),
            ("dwell_ms", json!(3_600_001)),
            ("post_id", json!(0)),
            ("post_id", json!(9_007_199_254_740_992_u64)),
            ("author_id", json!(0)),
            ("author_id", json!("2")),
            ("app_ver", json!("7")),
            ("device", json!("")),
            ("event_time", hours(1)),
            ("event_time", hours(-25)),
            ("event_time", json!("yesterday")),
            ("user_id", json!(8)),
            ("event_id", json!("x")),
            ("ranking_id", json!(5)),
        ];
        for (field, value) in cases {
            assert_eq!(
                refused(field, value.clone()),
                [format!("events[3].{field}")],
                "{field} = {value}"
            );
        }
    }

    #[test]
    fn missing_fields_are_all_reported() {
        let errors = validate(0, &json!({}), 7, NOW_MS).err().unwrap_or_default();
        let fields: Vec<&str> = errors.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "event_time",
                "post_id",
                "author_id",
                "action",
                "device",
                "app_ver"
            ]
            .map(|field| format!("events[0].{field}"))
        );
    }
}
