//! The results of a replay as data: the exact check, bit for bit, against what was served, and the
//! comparison with each other policy. Each worker fills a tally of its own, and the tallies are
//! merged at the end.

use super::fuel::Fuel;
use super::record::Record;
use nova_model::artifact::Digest;
use nova_model::failure::PolicyFailure;
use nova_policy::compare::{Comparison, ComparisonSummary, Comparisons, Distribution, Samples};
use nova_policy::ranking::Ranking;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// Maximum number of mismatches listed in detail. The others are only counted.
const MISMATCHES_TOLD_MAX: usize = 20;
/// Maximum number of pages shown side by side.
const PAGES_MAX: usize = 6;

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub records: RecordsReport,
    /// Results of running the policy that served again.
    pub check: CheckReport,
    pub policies: Vec<PolicyReport>,
    pub threads: usize,
    pub elapsed_s: f64,
    pub requests_per_second: f64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct RecordsReport {
    pub read: u64,
    /// Number of records that could not be replayed, by reason.
    pub skipped: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    pub checked: u64,
    pub exact: u64,
    pub mismatched: u64,
    /// The first mismatches.
    pub mismatches: Vec<Mismatch>,
    /// Number of records that were not checked because their policy cannot run here, by policy.
    pub unavailable: BTreeMap<String, u64>,
    /// Time of one ranking (all three stages) in µs. If other policies are compared, it is
    /// measured on instances of the policy's own mode, so that the times are comparable;
    /// otherwise on reused instances.
    pub latency_us: Option<Distribution>,
    /// Fuel of one ranking, over some of the records. Null if no policies were compared.
    pub fuel: Option<Distribution>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Mismatch {
    pub record: i64,
    pub ranking_id: Uuid,
    pub policy: String,
    pub difference: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct PolicyReport {
    pub policy: String,
    pub effective_digest: Digest,
    pub runs: u64,
    /// Number of runs that gave no ranking, by kind of failure.
    pub failures: BTreeMap<&'static str, u64>,
    /// Number of runs that took longer here than the policy's own deadline.
    pub over_deadline: u64,
    /// Time of one ranking (all three stages) in µs.
    pub latency_us: Option<Distribution>,
    /// Fuel of one ranking, over some of the records.
    pub fuel: Option<Distribution>,
    /// Comparison with what was served.
    pub comparison: ComparisonSummary,
    pub most_moved: Vec<PageMove>,
    #[serde(skip)]
    pub samples: PolicySamples,
}

/// Data of the plots.
#[derive(Debug, Clone)]
pub struct PolicySamples {
    pub comparisons: Comparisons,
    pub latency_us: Samples,
}

/// One page as it was served and as the other policy would have ranked it.
#[derive(Debug, Clone, Serialize)]
pub struct PageMove {
    pub record: i64,
    pub ranking_id: Uuid,
    pub user_id: u64,
    pub now_ms: u64,
    pub served_by_policy: String,
    pub overlap: f64,
    pub kendall_tau: Option<f64>,
    pub before: Vec<PagePost>,
    pub after: Vec<PagePost>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PagePost {
    pub post_id: u64,
    pub author_id: u64,
    pub score: f32,
    /// One of followees, affinity, trending and recent.
    pub reason: &'static str,
    /// Its position in the other ranking, from 0. Null if dedup removed it there.
    pub other_position: Option<usize>,
}

/// The counts of one worker.
#[derive(Debug)]
pub struct Tally {
    pub records: RecordsReport,
    pub check: CheckTally,
    pub contenders: Vec<ContenderTally>,
}

#[derive(Debug)]
pub struct CheckTally {
    exact: u64,
    mismatched: u64,
    mismatches: Vec<Mismatch>,
    unavailable: BTreeMap<String, u64>,
    latency_us: Samples,
}

#[derive(Debug)]
pub struct ContenderTally {
    runs: u64,
    failures: BTreeMap<&'static str, u64>,
    over_deadline: u64,
    samples: PolicySamples,
    most_moved: Vec<PageMove>,
}

impl Report {
    pub fn add_fuel(&mut self, fuel: Fuel) {
        self.check.fuel = fuel.served;
        for (policy, fuel) in self.policies.iter_mut().zip(fuel.contenders) {
            policy.fuel = fuel;
        }
    }
}

impl Tally {
    pub fn new(contenders: usize) -> Self {
        Self {
            records: RecordsReport::default(),
            check: CheckTally {
                exact: 0,
                mismatched: 0,
                mismatches: Vec::new(),
                unavailable: BTreeMap::new(),
                latency_us: Samples::latest(usize::MAX),
            },
            contenders: (0..contenders).map(|_| ContenderTally::new()).collect(),
        }
    }

    pub fn skip(&mut self, reason: String) {
        *self.records.skipped.entry(reason).or_default() += 1;
    }

    pub fn merge(&mut self, other: Self) {
        self.records.read += other.records.read;
        add_counts(&mut self.records.skipped, other.records.skipped);
        self.check.merge(other.check);
        for (mine, theirs) in self.contenders.iter_mut().zip(other.contenders) {
            mine.merge(theirs);
        }
    }
}

fn add_counts<K: Ord>(counts: &mut BTreeMap<K, u64>, more: BTreeMap<K, u64>) {
    for (key, count) in more {
        *counts.entry(key).or_default() += count;
    }
}

impl CheckTally {
    pub fn unavailable(&mut self, policy: &str) {
        *self.unavailable.entry(policy.to_owned()).or_default() += 1;
    }

    /// Counts one record that was ranked again, and the difference to what was served, if there
    /// is one.
    pub fn checked(
        &mut self,
        id: i64,
        record: &Record,
        difference: Option<String>,
        took: Duration,
    ) {
        self.latency_us.push(took.as_secs_f64() * 1e6);
        let Some(difference) = difference else {
            self.exact += 1;
            return;
        };
        self.mismatched += 1;
        if self.mismatches.len() < MISMATCHES_TOLD_MAX {
            self.mismatches.push(Mismatch {
                record: id,
                ranking_id: record.ranking_id,
                policy: record.answer.policy.label.clone(),
                difference,
            });
        }
    }

    fn merge(&mut self, other: Self) {
        self.exact += other.exact;
        self.mismatched += other.mismatched;
        self.mismatches.extend(other.mismatches);
        self.mismatches.sort_by_key(|mismatch| mismatch.record);
        self.mismatches.truncate(MISMATCHES_TOLD_MAX);
        add_counts(&mut self.unavailable, other.unavailable);
        self.latency_us.extend(&other.latency_us);
    }

    pub fn report(self) -> CheckReport {
        CheckReport {
            checked: self.exact + self.mismatched,
            exact: self.exact,
            mismatched: self.mismatched,
            mismatches: self.mismatches,
            unavailable: self.unavailable,
            latency_us: self.latency_us.distribution(),
            fuel: None,
        }
    }
}

/// Describes the first difference between two answers. `None` if every row and every bit of every
/// score is the same.
pub fn difference(record: &Record, answer: &Result<Ranking, PolicyFailure>) -> Option<String> {
    let ranking = match answer {
        Ok(ranking) => ranking,
        Err(failure) => return Some(format!("fails now: {failure}")),
    };
    let (rows, scores) = (&record.answer.rows, &record.answer.scores);
    if rows.len() != ranking.rows.len() {
        let (then, now) = (rows.len(), ranking.rows.len());
        return Some(format!("{then} posts then, {now} now"));
    }
    let same = |at: &usize| {
        rows[*at] == ranking.rows[*at] && scores[*at].to_bits() == ranking.scores[*at].to_bits()
    };
    let at = (0..rows.len()).find(|at| !same(at))?;
    let post = |row: u32| record.candidates.post_ids[row as usize];
    Some(format!(
        "position {at}: post {} scored {} then, post {} scored {} now",
        post(rows[at]),
        scores[at],
        post(ranking.rows[at]),
        ranking.scores[at],
    ))
}

impl ContenderTally {
    fn new() -> Self {
        Self {
            runs: 0,
            failures: BTreeMap::new(),
            over_deadline: 0,
            samples: PolicySamples {
                comparisons: Comparisons::latest(usize::MAX),
                latency_us: Samples::latest(usize::MAX),
            },
            most_moved: Vec::new(),
        }
    }

    pub fn ran(&mut self, took: Duration, deadline: Duration) {
        self.runs += 1;
        self.over_deadline += u64::from(took > deadline);
        self.samples.latency_us.push(took.as_secs_f64() * 1e6);
    }

    pub fn failed(&mut self, failure: &PolicyFailure) {
        *self.failures.entry(failure.kind.as_str()).or_default() += 1;
    }

    pub fn compared(&mut self, id: i64, record: &Record, ranking: &Ranking, found: &Comparison) {
        self.samples.comparisons.push(found);
        let unmoved = found.overlap == 1.0 && found.moved == 0;
        let worst = self.most_moved.last().map(PageMove::nearness);
        let joins = self.most_moved.len() < PAGES_MAX
            || worst.is_some_and(|worst| nearness(found.overlap, found.kendall_tau) < worst);
        if !unmoved && joins {
            self.most_moved.push(page_move(id, record, ranking, found));
            self.keep_most_moved();
        }
    }

    fn keep_most_moved(&mut self) {
        self.most_moved.sort_by(|a, b| {
            let (near_a, near_b) = (a.nearness(), b.nearness());
            let by_nearness = near_a.0.total_cmp(&near_b.0);
            by_nearness.then(near_a.1.total_cmp(&near_b.1))
        });
        self.most_moved.truncate(PAGES_MAX);
    }

    fn merge(&mut self, other: Self) {
        self.runs += other.runs;
        self.over_deadline += other.over_deadline;
        add_counts(&mut self.failures, other.failures);
        self.samples.comparisons.extend(&other.samples.comparisons);
        self.samples.latency_us.extend(&other.samples.latency_us);
        self.most_moved.extend(other.most_moved);
        self.keep_most_moved();
    }

    pub fn report(self, policy: String, effective_digest: Digest) -> PolicyReport {
        PolicyReport {
            policy,
            effective_digest,
            runs: self.runs,
            failures: self.failures,
            over_deadline: self.over_deadline,
            latency_us: self.samples.latency_us.distribution(),
            fuel: None,
            comparison: self.samples.comparisons.summary(),
            most_moved: self.most_moved,
            samples: self.samples,
        }
    }
}

/// Returns a sort key that is lower the more a page changed: first by posts in common, then by
/// order.
fn nearness(overlap: f64, kendall_tau: Option<f64>) -> (f64, f64) {
    (overlap, kendall_tau.unwrap_or(1.0))
}

impl PageMove {
    fn nearness(&self) -> (f64, f64) {
        nearness(self.overlap, self.kendall_tau)
    }
}

fn page_move(id: i64, record: &Record, ranking: &Ranking, found: &Comparison) -> PageMove {
    let answer = &record.answer;
    let page = record.limit as usize;
    PageMove {
        record: id,
        ranking_id: record.ranking_id,
        user_id: record.user_id,
        now_ms: record.now_ms,
        served_by_policy: answer.policy.label.clone(),
        overlap: found.overlap,
        kendall_tau: found.kendall_tau,
        before: page_posts(record, (&answer.rows, &answer.scores), &ranking.rows, page),
        after: page_posts(record, (&ranking.rows, &ranking.scores), &answer.rows, page),
    }
}

fn page_posts(
    record: &Record,
    (rows, scores): (&[u32], &[f32]),
    other: &[u32],
    page: usize,
) -> Vec<PagePost> {
    let set = &record.candidates;
    let post = |(&row, &score): (&u32, &f32)| PagePost {
        post_id: set.post_ids[row as usize],
        author_id: set.author_ids[row as usize],
        score,
        reason: set.sources[row as usize].reason(),
        other_position: other.iter().position(|&other| other == row),
    };
    rows.iter().zip(scores).take(page).map(post).collect()
}

#[cfg(test)]
mod tests;
