//! Dead letters: messages that cannot be decoded are written to a dead-letter topic with the
//! reason and their source position, so that an operator can inspect them and send them again.
//! A message is kept whole, unless the broker would refuse it together with its headers.

use super::message::Undecodable;
use super::producer::{Outgoing, Producer};
use crate::ports::StoreResult;
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;
use rdkafka::message::{Header, OwnedHeaders};

/// Limit on the payload. The producer refuses messages larger than 1,000,000 bytes, headers
/// included, and a dead letter that is refused would block its partition for ever. So each part
/// has a limit, and all parts together stay below that size.
const PAYLOAD_BYTES_MAX: usize = 900_000;
const KEY_BYTES_MAX: usize = 16_384;
/// Limit on the detail text. Decoders quote the invalid text in their errors, and that may
/// be the whole message.
const DETAIL_BYTES_MAX: usize = 2_048;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    /// The start of the message if it was too long; `cut_from_bytes` then holds the
    /// original length in bytes.
    pub payload: Vec<u8>,
    pub cut_from_bytes: Option<usize>,
    pub reason: &'static str,
    pub detail: String,
}

/// Writes dead letters to one topic. Neither their order nor their number is guaranteed: a retry
/// may write a letter again.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    producer: Producer,
    topic: String,
}

impl DeadLetters {
    pub fn new(producer: Producer, topic: String) -> Self {
        Self { producer, topic }
    }

    /// Writes the letters durably.
    ///
    /// # Errors
    /// Fails if the broker did not accept them. The offset of the source must not advance then.
    pub async fn put(&self, letters: &[DeadLetter]) -> StoreResult<()> {
        if letters.is_empty() {
            return Ok(());
        }
        self.producer
            .send(
                "write_dead_letters",
                &self.topic,
                letters.iter().map(outgoing),
            )
            .await?;
        for letter in letters {
            METRICS
                .dead_letters_total
                .with_label_values(&[&letter.topic, letter.reason])
                .inc();
            tracing::warn!(
                topic = letter.topic,
                partition = letter.partition,
                offset = letter.offset,
                reason = letter.reason,
                detail = letter.detail,
                "could not decode a message; dead-lettered it"
            );
        }
        Ok(())
    }
}

impl DeadLetter {
    pub fn new(
        (topic, partition, offset): (&str, i32, i64),
        (key, payload): (Option<&[u8]>, Option<&[u8]>),
        why: &Undecodable,
    ) -> Self {
        let payload = payload.unwrap_or_default();
        let mut detail = why.to_string();
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        Self {
            topic: topic.to_owned(),
            partition,
            offset,
            key: key.map(|key| start(key, KEY_BYTES_MAX).to_vec()),
            payload: start(payload, PAYLOAD_BYTES_MAX).to_vec(),
            cut_from_bytes: (payload.len() > PAYLOAD_BYTES_MAX).then_some(payload.len()),
            reason: why.reason(),
            detail,
        }
    }
}

fn start(bytes: &[u8], bytes_max: usize) -> &[u8] {
    bytes.get(..bytes_max).unwrap_or(bytes)
}

pub(super) fn outgoing(letter: &DeadLetter) -> Outgoing {
    let (partition, offset) = (letter.partition.to_string(), letter.offset.to_string());
    let cut_from_bytes = letter.cut_from_bytes.map(|bytes| bytes.to_string());
    let headers = [
        ("reason", letter.reason),
        ("detail", &letter.detail),
        ("source.topic", &letter.topic),
        ("source.partition", &partition),
        ("source.offset", &offset),
    ];
    let cut = cut_from_bytes
        .iter()
        .map(|bytes| ("payload.cut_from_bytes", bytes.as_str()));
    let headers =
        headers
            .into_iter()
            .chain(cut)
            .fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header {
                    key,
                    value: Some(value),
                })
            });
    Outgoing {
        key: letter.key.clone(),
        payload: letter.payload.clone(),
        timestamp_ms: unix_ms(),
        headers: Some(headers),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use rdkafka::message::Headers as _;

    fn sent(payload: &[u8], why: &Undecodable) -> (Outgoing, usize, Vec<String>) {
        let letter = DeadLetter::new(("events", 3, 7), (Some(payload), Some(payload)), why);
        let outgoing = outgoing(&letter);
        let headers = outgoing.headers.as_ref().unwrap();
        let bytes = headers
            .iter()
            .map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len) + 10)
            .sum();
        let names = headers.iter().map(|header| header.key.to_owned()).collect();
        (outgoing, bytes, names)
    }

    #[test]
    fn a_dead_letter_of_the_largest_message_is_truncated_says_so_and_fits_the_producers_limit() {
        let payload = vec![b'x'; 1_048_576];
        let why = Undecodable::Malformed("é".repeat(500_000));
        let (letter, header_bytes, names) = sent(&payload, &why);
        let key_bytes = letter.key.as_ref().unwrap().len();
        assert_eq!(letter.payload.len(), PAYLOAD_BYTES_MAX);
        assert!(letter.payload.len() + key_bytes + header_bytes < 990_000);
        let headers = letter.headers.as_ref().unwrap();
        let last = headers.iter().last().unwrap();
        assert_eq!(
            (last.key, last.value),
            ("payload.cut_from_bytes", Some(&b"1048576"[..]))
        );
        assert_eq!(names.len(), 6);
    }

    #[test]
    fn a_message_that_fits_is_dead_lettered_whole() {
        let (letter, _, names) = sent(b"{", &Undecodable::Empty);
        assert_eq!(letter.payload, b"{");
        assert!(!names.iter().any(|name| name == "payload.cut_from_bytes"));
    }
}
