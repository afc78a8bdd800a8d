//! A run of messages of one partition that is stored as one, on the first attempt and on every other.

use std::sync::Arc;

/// Everything that one partition held from `first` to `last`, both included.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch<T> {
    pub topic: Arc<str>,
    pub partition: i32,
    pub first: i64,
    pub last: i64,
    /// The first message's own time.
    pub first_at_ms: u64,
    /// What could be decoded and is worth storing, by offset; may be empty.
    pub rows: Vec<Row<T>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row<T> {
    pub offset: i64,
    pub value: T,
}

impl<T> Batch<T> {
    /// The same for the same messages, whoever reads them and however often: what a store takes for a repeat.
    /// Offsets alone would name other messages too once the topic was made anew, hence the time.
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
