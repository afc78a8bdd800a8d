//! Decoding of Debezium's messages in `cdc.*`: the full envelope, with the row before and after
//! the change.
//!
//! Times are `timestamptz` columns, so they arrive as text in UTC in every precision mode of
//! the connector.

use super::change::RowChange;
use super::rows::{Comment, Follow, Like, Post, Transition, User};
use nova_model::cdc::Table;
use nova_model::event::ID_MAX;
use nova_stores::kafka::message::Undecodable;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Debezium's placeholder for a large value that an update did not touch. It is sent if
/// PostgreSQL does not log old rows in full.
const UNAVAILABLE: &str = "__debezium_unavailable_value";

#[derive(Deserialize)]
#[serde(bound = "R: DeserializeOwned")]
struct Envelope<R> {
    before: Option<R>,
    after: Option<R>,
    op: String,
    source: Source,
}

#[derive(Deserialize)]
struct Source {
    /// The position of the change itself in PostgreSQL's log.
    lsn: Option<u64>,
    /// Commit time of its transaction.
    ts_ms: u64,
}

/// A row of a captured table.
pub trait Row: DeserializeOwned + Clone {
    /// Returns the ids that every real row has. Without full replica identity, a delete carries
    /// only its key and the other columns arrive as zeros. Such a message would delete a row
    /// that never existed.
    fn ids(&self) -> Vec<u64>;

    /// Replaces placeholders for values that were not sent by the values of the old row.
    ///
    /// # Errors
    /// If the old row is missing or lacks the value too.
    fn fill_in(&mut self, _before: Option<&Self>) -> Result<(), Undecodable> {
        Ok(())
    }
}

impl Row for User {
    fn ids(&self) -> Vec<u64> {
        vec![self.user_id]
    }

    fn fill_in(&mut self, before: Option<&Self>) -> Result<(), Undecodable> {
        for (value, old) in [
            (&mut self.username, before.map(|row| &row.username)),
            (&mut self.avatar_url, before.map(|row| &row.avatar_url)),
            (&mut self.bio, before.map(|row| &row.bio)),
            (&mut self.country, before.map(|row| &row.country)),
            (&mut self.language, before.map(|row| &row.language)),
        ] {
            if value != UNAVAILABLE {
                continue;
            }
            let known = old.filter(|old| *old != UNAVAILABLE);
            value.clone_from(known.ok_or_else(|| {
                Undecodable::Invalid(
                    "a large value was not sent; users needs REPLICA IDENTITY FULL".to_owned(),
                )
            })?);
        }
        Ok(())
    }
}

impl Row for Post {
    fn ids(&self) -> Vec<u64> {
        vec![self.post_id, self.author_id]
    }
}

impl Row for Follow {
    fn ids(&self) -> Vec<u64> {
        vec![self.follower_id, self.following_id]
    }
}

impl Row for Comment {
    fn ids(&self) -> Vec<u64> {
        vec![self.comment_id]
    }
}

impl Row for Like {
    fn ids(&self) -> Vec<u64> {
        vec![self.like_id]
    }
}

/// Decodes one message. Returns `None` for a tombstone: it follows a delete for the sake of
/// compacted topics and has no new information.
///
/// # Errors
/// If the message is not a change of that table.
pub fn decode(table: Table, payload: Option<&[u8]>) -> Result<Option<RowChange>, Undecodable> {
    let Some(payload) = payload else {
        return Ok(None);
    };
    let change = match table {
        Table::Users => RowChange::User(transition(payload)?),
        Table::Posts => RowChange::Post(transition(payload)?),
        Table::Follows => RowChange::Follow(transition(payload)?),
        Table::Comments => RowChange::Comment(transition(payload)?),
        Table::Likes => RowChange::Like(transition(payload)?),
    };
    Ok(Some(change))
}

fn transition<R: Row>(payload: &[u8]) -> Result<Transition<R>, Undecodable> {
    let envelope: Envelope<R> = serde_json::from_slice(payload)
        .map_err(|error| Undecodable::Malformed(error.to_string()))?;
    let (op, before, mut after) = (envelope.op, envelope.before, envelope.after);
    match (op.as_str(), &before, &mut after) {
        ("c" | "r" | "u", before, Some(after)) => after.fill_in(before.as_ref())?,
        ("d", Some(_), None) => {}
        (op, before, after) => {
            let with = |there: bool| if there { "with" } else { "without" };
            return Err(Undecodable::Invalid(format!(
                "operation {op:?} {} an old row and {} a new one",
                with(before.is_some()),
                with(after.is_some()),
            )));
        }
    }
    for row in before.iter().chain(&after) {
        let ids = row.ids();
        if ids.iter().any(|id| !(1..=ID_MAX).contains(id)) {
            return Err(Undecodable::Invalid(format!(
                "an id of {ids:?} is out of range; the table needs REPLICA IDENTITY FULL"
            )));
        }
    }
    let lsn = envelope.source.lsn.ok_or_else(|| {
        Undecodable::Invalid(
            "the change has no position in PostgreSQL's log (source.lsn)".to_owned(),
        )
    })?;
    Ok(Transition {
        before,
        after,
        lsn,
        committed_ms: envelope.source.ts_ms,
        snapshot: op == "r",
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod format_tests;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// Messages written by Debezium 3.6, one per line: name, table, key, value.
    const CAPTURED: &str = include_str!("captured.jsonl");

    #[derive(Deserialize)]
    struct Captured {
        name: String,
        table: String,
        value: Option<Box<serde_json::value::RawValue>>,
    }

    fn captured(name: &str) -> Result<Option<RowChange>, Undecodable> {
        let line = CAPTURED
            .lines()
            .map(|line| serde_json::from_str::<Captured>(line).unwrap())
            .find(|line| line.name == name)
            .unwrap();
        let table = Table::ALL
            .into_iter()
            .find(|table| table.name() == line.table)
            .unwrap();
        decode(
            table,
            line.value.as_ref().map(|value| value.get().as_bytes()),
        )
    }

    fn user(name: &str) -> Transition<User> {
        match captured(name).unwrap().unwrap() {
            RowChange::User(transition) => transition,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_snapshot_read_has_no_old_row() {
        let read = user("user read in the snapshot");
        assert!(read.snapshot && read.before.is_none());
        let row = read.after.unwrap();
        assert_eq!((row.user_id, row.country.as_str()), (1, "NL"));
        assert_eq!(row.created_at.timestamp_millis(), 1_767_323_045_678);
        assert_eq!(read.lsn, 37_143_816);
    }

    #[test]
    fn an_insert_an_update_and_a_delete_carry_the_expected_old_and_new_rows() {
        let rows = |name: &str| match captured(name).unwrap().unwrap() {
            RowChange::Post(t) => (
                t.before.map(|row| row.deleted),
                t.after.map(|row| row.deleted),
            ),
            other => panic!("{other:?}"),
        };
        assert_eq!(rows("post inserted"), (None, Some(false)));
        assert_eq!(rows("post marked deleted"), (Some(false), Some(true)));
        assert_eq!(rows("post deleted"), (Some(false), None));
    }

    #[test]
    fn an_anonymous_like_has_no_user() {
        match captured("anonymous like").unwrap().unwrap() {
            RowChange::Like(like) => assert_eq!(like.after.unwrap().user_id, None),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_tombstone_is_not_a_change() {
        assert_eq!(captured("tombstone"), Ok(None));
    }

    #[test]
    fn a_large_value_that_was_not_sent_comes_from_the_old_row_or_is_refused() {
        let known = user("user with a large value that was not sent and an old row");
        assert_eq!(known.after.unwrap().bio, "a long story");
        let unknown = captured("user with a large value that was not sent");
        assert_eq!(unknown.unwrap_err().reason(), "invalid");
    }

    #[test]
    fn a_delete_that_carries_only_its_key_is_refused_if_more_is_needed() {
        let error = captured("post deleted without replica identity full").unwrap_err();
        assert!(
            error.to_string().contains("REPLICA IDENTITY FULL"),
            "{error}"
        );
    }

    #[test]
    fn a_message_that_is_not_a_change_is_refused_with_a_reason() {
        for (payload, reason) in [
            ("{", "malformed"),
            (r#"{"op":"c"}"#, "malformed"),
            (
                r#"{"before":null,"after":null,"op":"t","source":{"lsn":1,"ts_ms":1}}"#,
                "invalid",
            ),
            (
                r#"{"before":null,"after":null,"op":"d","source":{"lsn":1,"ts_ms":1}}"#,
                "invalid",
            ),
        ] {
            let error = decode(Table::Posts, Some(payload.as_bytes())).unwrap_err();
            assert_eq!(error.reason(), reason, "{payload}");
        }
    }
}
