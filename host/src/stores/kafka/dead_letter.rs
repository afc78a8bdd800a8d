//! What cannot be decoded is put aside whole, with its reason and where it was, so that somebody can look and send it again.

use super::message::Undecodable;
use super::producer::{Outgoing, Producer};
use crate::clock::unix_ms;
use crate::metrics::METRICS;
use crate::stores::StoreResult;
use rdkafka::message::{Header, OwnedHeaders};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub payload: Vec<u8>,
    pub reason: &'static str,
    pub detail: String,
}

/// Puts letters into one topic. Their order and number are not kept: a retry may put a letter there again.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    producer: Producer,
    topic: String,
}

impl DeadLetters {
    pub fn new(producer: Producer, topic: String) -> Self {
        Self { producer, topic }
    }

    /// # Errors
    /// When the broker did not take them; the source's offset must not move then.
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
                "a message was put aside"
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
        Self {
            topic: topic.to_owned(),
            partition,
            offset,
            key: key.map(<[u8]>::to_vec),
            payload: payload.unwrap_or_default().to_vec(),
            reason: why.reason(),
            detail: why.to_string(),
        }
    }
}

fn outgoing(letter: &DeadLetter) -> Outgoing {
    let (partition, offset) = (letter.partition.to_string(), letter.offset.to_string());
    let headers = [
        ("reason", letter.reason),
        ("detail", &letter.detail),
        ("source.topic", &letter.topic),
        ("source.partition", &partition),
        ("source.offset", &offset),
    ];
    let headers = headers
        .into_iter()
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
