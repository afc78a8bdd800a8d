//! The features that the host offers to policies (ABI 1.0), and the computation of their columns.

use crate::post::Counters;
use crate::time::UnixMs;
use serde::{Deserialize, Serialize};

/// Set of the sources that found a candidate, as bit flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sources(u8);

impl Sources {
    pub const FOLLOWEES: Sources = Sources(1);
    pub const AFFINITY: Sources = Sources(2);
    pub const TRENDING: Sources = Sources(4);
    pub const RECENT: Sources = Sources(8);

    pub fn insert(&mut self, other: Sources) {
        self.0 |= other.0;
    }

    pub fn contains(self, other: Sources) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns the first that applies of followees, affinity, trending and recent.
    pub fn reason(self) -> &'static str {
        if self.contains(Self::FOLLOWEES) {
            "followees"
        } else if self.contains(Self::AFFINITY) {
            "affinity"
        } else if self.contains(Self::TRENDING) {
            "trending"
        } else {
            "recent"
        }
    }
}

/// The candidates of one viewer, one row per post, as columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CandidateSet {
    pub post_ids: Vec<u64>,
    pub author_ids: Vec<u64>,
    pub created_at_ms: Vec<UnixMs>,
    pub sources: Vec<Sources>,
    pub counters: Vec<Counters>,
    /// Viewer → author interactions in the last 90 days.
    pub affinity: Vec<u64>,
    /// Impressions of this author's posts to this viewer in the last 24 h.
    pub author_recent_impressions: Vec<u64>,
}

impl CandidateSet {
    pub fn len(&self) -> usize {
        self.post_ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.post_ids.is_empty()
    }

    /// Reports if all columns have the same length. Check this after decoding a set, because code
    /// that reads a row reads it from every column.
    pub fn has_even_columns(&self) -> bool {
        let lengths = [
            self.author_ids.len(),
            self.created_at_ms.len(),
            self.sources.len(),
            self.counters.len(),
            self.affinity.len(),
            self.author_recent_impressions.len(),
        ];
        lengths.iter().all(|&length| length == self.len())
    }
}

macro_rules! features {
    ($($variant:ident $name:literal),+ $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Feature { $($variant),+ }

        impl Feature {
            pub const ALL: &[Feature] = &[$(Feature::$variant),+];

            pub fn name(self) -> &'static str {
                match self { $(Feature::$variant => $name),+ }
            }
        }
    };
}

features! {
    AgeHours "age_hours",
    Likes "likes",
    Comments "comments",
    Shares "shares",
    Views "views",
    DwellMsSum "dwell_ms_sum",
    Exposures "exposures",
    Affinity "affinity",
    Seen "seen",
    SourceFollowees "source_followees",
    SourceTrending "source_trending",
    SourceAffinity "source_affinity",
    SourceRecent "source_recent",
    AuthorRecentImpressions "author_recent_impressions",
}

impl Feature {
    pub fn parse(name: &str) -> Option<Feature> {
        Feature::ALL
            .iter()
            .copied()
            .find(|feature| feature.name() == name)
    }

    /// Appends this feature's values for the candidates `rows` of `set` to `column`.
    pub fn append_column(
        self,
        set: &CandidateSet,
        seen: &[bool],
        now_ms: UnixMs,
        rows: &[u32],
        column: &mut Vec<f32>,
    ) {
        let flag = |on: bool| if on { 1.0 } else { 0.0 };
        let rows = rows.iter().map(|&row| row as usize);
        match self {
            Feature::AgeHours => {
                column.extend(rows.map(|row| age_hours(now_ms, set.created_at_ms[row])))
            }
            Feature::Likes => column.extend(rows.map(|row| set.counters[row].likes as f32)),
            Feature::Comments => column.extend(rows.map(|row| set.counters[row].comments as f32)),
            Feature::Shares => column.extend(rows.map(|row| set.counters[row].shares as f32)),
            Feature::Views => column.extend(rows.map(|row| set.counters[row].views as f32)),
            Feature::DwellMsSum => {
                column.extend(rows.map(|row| set.counters[row].dwell_ms_sum as f32))
            }
            Feature::Exposures => column.extend(rows.map(|row| set.counters[row].exposures as f32)),
            Feature::Affinity => column.extend(rows.map(|row| set.affinity[row] as f32)),
            Feature::Seen => column.extend(rows.map(|row| flag(seen[row]))),
            Feature::SourceFollowees => {
                column.extend(rows.map(|row| flag(set.sources[row].contains(Sources::FOLLOWEES))));
            }
            Feature::SourceTrending => {
                column.extend(rows.map(|row| flag(set.sources[row].contains(Sources::TRENDING))));
            }
            Feature::SourceAffinity => {
                column.extend(rows.map(|row| flag(set.sources[row].contains(Sources::AFFINITY))));
            }
            Feature::SourceRecent => {
                column.extend(rows.map(|row| flag(set.sources[row].contains(Sources::RECENT))))
            }
            Feature::AuthorRecentImpressions => {
                column.extend(rows.map(|row| set.author_recent_impressions[row] as f32));
            }
        }
    }
}

/// Returns the hours between two instants. A post dated in the future is 0 h old.
fn age_hours(now_ms: UnixMs, created_at_ms: UnixMs) -> f32 {
    (now_ms.saturating_sub(created_at_ms) as f64 / 3_600_000.0) as f32
}
