//! Ids of one suite's own on a server that suites share.

use uuid::Uuid;

/// Ids that nobody else uses, so that suites can share a server, and that a pattern finds again.
#[derive(Debug, Clone, Copy)]
pub struct Ids(u64);

impl Ids {
    pub fn fresh() -> Self {
        Self(rand::random_range(10_000_000_000..100_000_000_000))
    }

    /// `n` below 100.
    pub fn viewer(self, n: u64) -> u64 {
        self.0 * 100 + n
    }

    pub fn ranking(self, n: u64) -> Uuid {
        Uuid::from_u64_pair(self.0, n)
    }

    /// Glob patterns of every key that has one of these ids in it.
    pub fn key_patterns(self) -> [String; 2] {
        let ranking = self.ranking(0).to_string();
        let (front, _) = ranking.split_at(18);
        [format!("*:{}??*", self.0), format!("*:{front}-*")]
    }
}
