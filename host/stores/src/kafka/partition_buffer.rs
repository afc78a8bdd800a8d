//! The partition buffer: the messages of each owned partition that are not stored yet, and the
//! rule by which they are sealed into batches.
//!
//! This code is pure: the content of a batch depends on the messages and the intent alone, never
//! on the time at which the messages arrived.

use super::batch::{Batch, Row};
use super::dead_letter::DeadLetter;
use super::group::PartitionKey;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The result of decoding a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Content<T> {
    Row(T),
    /// A valid message that holds nothing to store.
    Nothing,
    Dead(DeadLetter),
}

#[derive(Debug, Clone, PartialEq)]
pub struct BufferedMessage<T> {
    pub offset: i64,
    /// Timestamp of the message.
    pub at_ms: u64,
    pub content: Content<T>,
}

/// A sealed batch, with the dead letters and the number of messages in its range.
#[derive(Debug, Clone, PartialEq)]
pub struct SealedBatch<T> {
    pub batch: Batch<T>,
    pub dead: Vec<DeadLetter>,
    pub messages: u64,
}

#[derive(Debug)]
pub struct PartitionBuffer<T> {
    partitions: BTreeMap<PartitionKey, Partition<T>>,
    count: usize,
}

#[derive(Debug)]
struct Partition<T> {
    intent: Intent,
    messages: VecDeque<BufferedMessage<T>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    /// The group has not been asked for the intent yet; no batch is sealed before it has been.
    Unknown,
    Free,
    /// The next batch ends at this offset.
    Through(i64),
}

impl<T> Default for PartitionBuffer<T> {
    fn default() -> Self {
        Self {
            partitions: BTreeMap::new(),
            count: 0,
        }
    }
}

impl<T> PartitionBuffer<T> {
    pub fn assign(&mut self, key: PartitionKey) {
        self.revoke(&key);
        let partition = Partition {
            intent: Intent::Unknown,
            messages: VecDeque::new(),
        };
        self.partitions.insert(key, partition);
    }

    /// Drops a partition and its buffered messages. The next owner reads every message
    /// that is not stored yet.
    pub fn revoke(&mut self, key: &PartitionKey) {
        if let Some(partition) = self.partitions.remove(key) {
            self.count -= partition.messages.len();
        }
    }

    /// Partitions whose intent must still be fetched from the group.
    pub fn unknown(&self) -> Vec<PartitionKey> {
        let unknown = self
            .partitions
            .iter()
            .filter(|(_, partition)| partition.intent == Intent::Unknown);
        unknown.map(|(key, _)| key.clone()).collect()
    }

    pub fn set_intent(&mut self, key: &PartitionKey, intent: Option<i64>) {
        if let Some(partition) = self.partitions.get_mut(key) {
            partition.intent = intent.map_or(Intent::Free, Intent::Through);
        }
    }

    /// Buffers a message. A message of a partition that is no longer owned is dropped,
    /// because its owner reads it.
    pub fn push(&mut self, key: &PartitionKey, message: BufferedMessage<T>) {
        if let Some(partition) = self.partitions.get_mut(key) {
            partition.messages.push_back(message);
            self.count += 1;
        }
    }

    /// Every owned partition with the timestamp of its oldest buffered message.
    pub fn oldest(&self) -> impl Iterator<Item = (&PartitionKey, Option<u64>)> {
        let oldest = |partition: &Partition<T>| Some(partition.messages.front()?.at_ms);
        let partitions = self.partitions.iter();
        partitions.map(move |(key, partition)| (key, oldest(partition)))
    }

    /// Number of buffered messages.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if a batch can be sealed. Buffered messages alone are not enough: an intent may be
    /// unknown, or its messages incomplete, and then only polling helps.
    pub fn can_seal(&self) -> bool {
        self.partitions.values().any(Partition::can_seal)
    }

    /// Seals at most `batch_max` messages from the front of each partition. A partition with an
    /// intent yields exactly the intended batch once it is complete, and nothing before.
    pub fn seal(&mut self, batch_max: usize) -> Vec<SealedBatch<T>> {
        let batches: Vec<SealedBatch<T>> = self
            .partitions
            .iter_mut()
            .filter_map(|(key, partition)| {
                let messages = partition.take(batch_max)?;
                Some(seal(key, messages))
            })
            .collect();
        self.count -= batches
            .iter()
            .map(|sealed| sealed.messages as usize)
            .sum::<usize>();
        batches
    }
}

impl<T> Partition<T> {
    fn can_seal(&self) -> bool {
        let (Some(first), Some(newest)) = (self.messages.front(), self.messages.back()) else {
            return false;
        };
        match self.intent {
            Intent::Unknown => false,
            Intent::Through(last) => newest.offset >= last || first.offset > last,
            Intent::Free => true,
        }
    }

    fn take(&mut self, batch_max: usize) -> Option<VecDeque<BufferedMessage<T>>> {
        if !self.can_seal() {
            return None;
        }
        let first = self.messages.front()?.offset;
        let count = match self.intent {
            Intent::Through(last) if first <= last => self
                .messages
                .partition_point(|message| message.offset <= last),
            // If the intent ends before the oldest message that the broker still has, retention
            // has deleted its messages, so it no longer applies.
            _ => self.messages.len().min(batch_max),
        };
        self.intent = Intent::Free;
        let rest = self.messages.split_off(count);
        Some(std::mem::replace(&mut self.messages, rest))
    }
}

fn seal<T>(
    (topic, partition): &PartitionKey,
    messages: VecDeque<BufferedMessage<T>>,
) -> SealedBatch<T> {
    let offsets = |end: Option<&BufferedMessage<T>>| end.map_or(0, |message| message.offset);
    let mut sealed = SealedBatch {
        messages: messages.len() as u64,
        dead: Vec::new(),
        batch: Batch {
            topic: Arc::from(topic.as_str()),
            partition: *partition,
            first: offsets(messages.front()),
            last: offsets(messages.back()),
            first_at_ms: messages.front().map_or(0, |message| message.at_ms),
            rows: Vec::with_capacity(messages.len()),
        },
    };
    for BufferedMessage {
        offset, content, ..
    } in messages
    {
        match content {
            Content::Row(value) => sealed.batch.rows.push(Row { offset, value }),
            Content::Nothing => {}
            Content::Dead(letter) => sealed.dead.push(letter),
        }
    }
    sealed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(partition: i32) -> PartitionKey {
        ("events".to_owned(), partition)
    }

    fn buffer(
        partition: i32,
        intent: Option<i64>,
        offsets: std::ops::Range<i64>,
    ) -> PartitionBuffer<i64> {
        let mut buffer = PartitionBuffer::default();
        buffer.assign(key(partition));
        buffer.set_intent(&key(partition), intent);
        push(&mut buffer, partition, offsets);
        buffer
    }

    fn push(buffer: &mut PartitionBuffer<i64>, partition: i32, offsets: std::ops::Range<i64>) {
        for offset in offsets {
            let message = BufferedMessage {
                offset,
                at_ms: 1,
                content: Content::Row(offset),
            };
            buffer.push(&key(partition), message);
        }
    }

    fn tokens(buffer: &mut PartitionBuffer<i64>, batch_max: usize) -> Vec<String> {
        let batches = buffer.seal(batch_max);
        batches.iter().map(|sealed| sealed.batch.token()).collect()
    }

    #[test]
    fn a_batch_ends_at_its_maximum_size_and_the_rest_forms_the_next_batch() {
        let mut buffer = buffer(3, None, 10..17);
        assert_eq!(tokens(&mut buffer, 5), ["events:3:10-14@1"]);
        assert_eq!(buffer.len(), 2);
        assert_eq!(tokens(&mut buffer, 5), ["events:3:15-16@1"]);
        assert!(tokens(&mut buffer, 5).is_empty() && buffer.len() == 0);
    }

    #[test]
    fn an_intended_batch_is_repeated_exactly_despite_new_messages_and_another_maximum_size() {
        let mut buffer = buffer(0, Some(14), 10..13);
        assert!(tokens(&mut buffer, 2).is_empty(), "not complete yet");
        push(&mut buffer, 0, 13..20);
        assert_eq!(tokens(&mut buffer, 2), ["events:0:10-14@1"]);
        assert_eq!(tokens(&mut buffer, 100), ["events:0:15-19@1"]);
    }

    #[test]
    fn an_intent_whose_messages_the_broker_has_deleted_is_ignored() {
        let mut buffer = buffer(0, Some(14), 20..22);
        assert_eq!(tokens(&mut buffer, 100), ["events:0:20-21@1"]);
    }

    #[test]
    fn no_batch_is_sealed_before_the_intent_is_known_or_after_a_revocation() {
        let mut buffer = PartitionBuffer::default();
        buffer.assign(key(1));
        push(&mut buffer, 1, 0..3);
        assert_eq!(buffer.unknown(), [key(1)]);
        assert!(tokens(&mut buffer, 10).is_empty());
        buffer.revoke(&key(1));
        buffer.set_intent(&key(1), None);
        push(&mut buffer, 1, 3..5);
        assert!(tokens(&mut buffer, 10).is_empty() && buffer.len() == 0);
    }

    #[test]
    fn messages_without_rows_still_extend_the_batch() {
        let mut buffer = buffer(0, None, 0..1);
        for (offset, content) in [(1, Content::Nothing), (2, Content::Nothing)] {
            buffer.push(
                &key(0),
                BufferedMessage {
                    offset,
                    at_ms: 9,
                    content,
                },
            );
        }
        let batches = buffer.seal(10);
        let sealed = batches.first().map(|sealed| {
            (
                sealed.batch.last,
                sealed.batch.rows.len(),
                sealed.batch.first_at_ms,
            )
        });
        assert_eq!(sealed, Some((2, 1, 1)));
    }
}
