//! A batch: a range of messages of one partition that is stored as one unit, with the same content
//! on the first attempt and on every retry.

use std::sync::Arc;

/// All messages of one partition from offset `first` to offset `last`, both included.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch<T> {
    pub topic: Arc<str>,
    pub partition: i32,
    pub first: i64,
    pub last: i64,
    /// Timestamp of the first message.
    pub first_at_ms: u64,
    /// The messages that could be decoded and are worth storing, by offset; may be empty.
    pub rows: Vec<Row<T>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row<T> {
    pub offset: i64,
    pub value: T,
}

impl<T> Batch<T> {
    /// Returns the token by which a store recognises a repeated batch. The same messages always
    /// have the same token, regardless of the reader and the number of attempts. Offsets alone
    /// would also match other messages after the topic is deleted and created again, so the
    /// token includes a timestamp.
    pub fn token(&self) -> String {
        let Self {
            topic,
            partition,
            first,
            last,
            first_at_ms,
            ..
        } = self;
        format!("{topic}:{partition}:{first}-{last}@{first_at_ms}")
    }
}
