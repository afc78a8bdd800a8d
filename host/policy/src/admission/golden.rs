//! Golden sets: the candidate sets on which every policy is tried before it is published. They
//! cover the inputs that break ranking code, and one set is larger than any feed. They never
//! change, so verdicts do not change either.

use crate::ranking::{RankInput, best_first};
use nova_model::features::{CandidateSet, Sources};
use nova_model::post::Counters;
use nova_model::time::HOUR_MS;
use nova_policy_sdk::Request;

/// Maximum number of candidates of a request.
pub const CANDIDATES_MAX: usize = 1_100;
/// Size of the largest set. Policies must keep the contract on it, but need not meet the
/// deadline.
pub const OVERSIZE: usize = 5_000;
const NOW_MS: u64 = 1_750_000_000_000;
const TYPICAL: usize = 200;
/// The largest count that a JavaScript client could have sent.
const HUGE: u64 = (1 << 53) - 1;

/// A request by a viewer id that no user has.
const REQUEST: Request = Request {
    user_id: 9_007_199_254_740_000,
    now_ms: NOW_MS,
    seed: 0x5eed,
    limit: 50,
};

/// A named candidate set with the results of the earlier stages.
#[derive(Debug, Clone)]
pub struct Golden {
    pub name: &'static str,
    pub request: Request,
    pub set: CandidateSet,
    pub seen: Vec<bool>,
    /// Scores that are passed to `saturate`.
    pub scores: Vec<f32>,
}

impl Golden {
    pub fn input(&self) -> RankInput<'_> {
        RankInput {
            request: &self.request,
            set: &self.set,
            seen: &self.seen,
        }
    }

    /// Rows in the order in which `saturate` receives them.
    pub fn best_first(&self) -> Vec<u32> {
        best_first(&self.scores, &self.set.post_ids)
    }

    /// Creates a set like that of a real feed. A few authors write much and many write little,
    /// and a tenth of the posts is seen.
    pub fn typical(name: &'static str, candidates: usize) -> Self {
        let mut random = SplitMix(candidates as u64);
        let mut golden = Self {
            name,
            request: REQUEST,
            set: CandidateSet::default(),
            seen: Vec::new(),
            scores: Vec::new(),
        };
        for post in 0..candidates as u64 {
            let exposures = random.below(2_000);
            let rank = random.below(1_000) as f64 / 1_000.0;
            let author_id = 1 + (rank.powi(3) * candidates as f64 / 4.0) as u64;
            let counters = Counters {
                views: exposures / 3,
                likes: random.below(exposures / 10 + 1),
                comments: random.below(exposures / 50 + 1),
                shares: random.below(exposures / 100 + 1),
                dwell_ms_sum: exposures * 900,
                exposures,
            };
            let created_at_ms = NOW_MS - random.below(72 * HOUR_MS);
            golden.push(post + 1, author_id, created_at_ms, counters);
            golden.set.sources[post as usize] = SOURCES[random.below(4) as usize];
            golden.set.affinity[post as usize] = random.below(20);
            golden.set.author_recent_impressions[post as usize] = random.below(5);
            golden.seen[post as usize] = random.below(10) == 0;
            golden.scores[post as usize] = random.below(1 << 20) as f32 / 1_024.0;
        }
        golden
    }

    /// Posts that differ only in their ids and possibly in their authors.
    fn alike(name: &'static str, authors: u64, created_at_ms: u64, counters: Counters) -> Self {
        let mut golden = Self::typical(name, 0);
        for post in 0..TYPICAL as u64 {
            golden.push(post + 1, 1 + post % authors, created_at_ms, counters);
        }
        golden
    }

    fn push(&mut self, post_id: u64, author_id: u64, created_at_ms: u64, counters: Counters) {
        self.set.post_ids.push(post_id);
        self.set.author_ids.push(author_id);
        self.set.created_at_ms.push(created_at_ms);
        self.set.sources.push(Sources::RECENT);
        self.set.counters.push(counters);
        self.set.affinity.push(0);
        self.set.author_recent_impressions.push(0);
        self.seen.push(false);
        self.scores.push(0.0);
    }

    fn huge() -> Self {
        let counters = Counters {
            views: HUGE,
            likes: HUGE,
            comments: HUGE,
            shares: HUGE,
            dwell_ms_sum: HUGE,
            exposures: HUGE,
        };
        let mut golden = Self::alike("huge counts", 50, NOW_MS - 90 * 24 * HOUR_MS, counters);
        golden.set.affinity.fill(HUGE);
        golden.set.author_recent_impressions.fill(HUGE);
        golden.scores.fill(f32::MAX);
        golden
    }

    fn one_author() -> Self {
        let mut golden = Self::typical("all one author", TYPICAL);
        golden.set.author_ids.fill(7);
        golden
    }

    fn all_seen() -> Self {
        let mut golden = Self::typical("all seen", TYPICAL);
        golden.seen.fill(true);
        golden
    }
}

const SOURCES: [Sources; 4] = [
    Sources::FOLLOWEES,
    Sources::AFFINITY,
    Sources::TRENDING,
    Sources::RECENT,
];

/// Returns all sets, small ones first.
pub fn sets() -> Vec<Golden> {
    let some = Counters {
        views: 30,
        likes: 10,
        comments: 3,
        shares: 1,
        dwell_ms_sum: 90_000,
        exposures: 100,
    };
    vec![
        Golden::typical("empty", 0),
        Golden::typical("one", 1),
        Golden::one_author(),
        Golden::all_seen(),
        Golden::alike("ties", 50, NOW_MS - HOUR_MS, some),
        Golden::alike("zeros", TYPICAL as u64, NOW_MS, Counters::default()),
        Golden::huge(),
        Golden::typical("1,100", CANDIDATES_MAX),
        Golden::typical("5,000", OVERSIZE),
    ]
}

/// Returns the set on which parameters are tried at the ends of their ranges.
pub fn for_parameters() -> Golden {
    Golden::typical("200", TYPICAL)
}

/// The SplitMix generator of Steele, Lea and Flood. Its stream never changes. The stream of a
/// library's generator may change with its version, and the recorded fuel would change with it.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::Native;
    use crate::ranking::rank;

    #[test]
    fn the_sets_are_always_the_same_and_have_the_sizes_in_their_names() {
        let sizes: Vec<_> = sets().iter().map(|g| (g.name, g.set.len())).collect();
        assert_eq!(sizes[0], ("empty", 0));
        assert_eq!(sizes[1], ("one", 1));
        assert_eq!(sizes[sizes.len() - 1], ("5,000", OVERSIZE));
        for (one, other) in sets().iter().zip(&sets()) {
            assert_eq!((&one.set, &one.seen), (&other.set, &other.seen));
        }
    }

    #[test]
    fn the_native_ranking_ranks_every_golden_set() {
        for golden in sets() {
            let ranking = rank(Native::get(), golden.input()).map(|ranking| ranking.rows.len());
            assert!(ranking.is_ok(), "{}: {ranking:?}", golden.name);
        }
    }
}
