//! The ids of one test suite on a server that several suites share.

use uuid::Uuid;

/// Ids that no other suite uses, so that suites can share a server. A pattern finds their keys
/// again.
#[derive(Debug, Clone, Copy)]
pub struct Ids(u64);

impl Ids {
    pub fn fresh() -> Self {
        Self(rand::random_range(10_000_000_000..100_000_000_000))
    }

    /// Returns the id of a viewer. `n` is below 100.
    pub fn viewer(self, n: u64) -> u64 {
        self.0 * 100 + n
    }

    pub fn ranking(self, n: u64) -> Uuid {
        Uuid::from_u64_pair(self.0, n)
    }

    /// Returns glob patterns that match every key with one of these ids.
    pub fn key_patterns(self) -> [String; 2] {
        let ranking = self.ranking(0).to_string();
        let (front, _) = ranking.split_at(18);
        [format!("*:{}??*", self.0), format!("*:{front}-*")]
    }
}
