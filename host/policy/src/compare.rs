//! Comparison of two rankings of the same candidates: the differences that a viewer would have
//! seen. All functions are pure. They are used if a policy runs in addition to the serving one,
//! on live requests (shadow) or on recorded requests (replay).

use serde::Serialize;
use std::collections::BTreeMap;

/// Differences between two rankings. `before` is the served ranking, and `after` is the ranking
/// of the other policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Share of the page's posts that are on both pages: |before ∩ after| / the longer page. 1
    /// for two empty pages.
    pub overlap: f64,
    /// Kendall's τ-b over all posts that both rankings contain, not only the page: 1 is the same
    /// order, −1 is the reverse order. Positions have no ties, so τ-b equals τ-a. `None` if the
    /// rankings have fewer than two posts in common.
    pub kendall_tau: Option<f64>,
    /// `entered` counts the posts that are only on the `after` page, and `left` those that are
    /// only on the `before` page.
    pub entered: u32,
    pub left: u32,
    /// Number of posts that are on both pages at different positions.
    pub moved: u32,
    pub authors_before: Concentration,
    pub authors_after: Concentration,
}

/// Concentration of a page on few authors.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Concentration {
    pub distinct_authors: u32,
    /// Share of the author with the most posts.
    pub max_share: f64,
    /// Herfindahl–Hirschman index: the sum of the authors' squared shares. It is 1/n for n
    /// authors with one post each, and 1 for one author.
    pub herfindahl: f64,
}

/// Compares two orders of the rows of one candidate set with the authors `author_ids`. The page
/// is the first `page` positions. The rows must be in range and unique in each order, as the
/// output contract of a ranking requires.
pub fn compare(author_ids: &[u64], before: &[u32], after: &[u32], page: usize) -> Comparison {
    let position = positions(author_ids.len(), before);
    let (page_before, page_after) = (first(before, page), first(after, page));
    let (mut common, mut moved) = (0, 0);
    for (at, &row) in page_after.iter().enumerate() {
        match position[row as usize] {
            Some(was) if (was as usize) < page_before.len() => {
                common += 1;
                moved += u32::from(was as usize != at);
            }
            _ => {}
        }
    }
    let longer = page_before.len().max(page_after.len());
    let former: Vec<u32> = after
        .iter()
        .filter_map(|&row| position[row as usize])
        .collect();
    Comparison {
        overlap: if longer == 0 {
            1.0
        } else {
            f64::from(common) / longer as f64
        },
        kendall_tau: kendall_tau(former),
        entered: page_after.len() as u32 - common,
        left: page_before.len() as u32 - common,
        moved,
        authors_before: concentration(author_ids, page_before),
        authors_after: concentration(author_ids, page_after),
    }
}

fn first(rows: &[u32], page: usize) -> &[u32] {
    &rows[..page.min(rows.len())]
}

/// Returns the position of each row, or `None` for a row that is not in the order.
fn positions(rows: usize, order: &[u32]) -> Vec<Option<u32>> {
    let mut positions = vec![None; rows];
    for (position, &row) in order.iter().enumerate() {
        positions[row as usize] = Some(position as u32);
    }
    positions
}

/// Returns τ of a sequence of distinct numbers against their ascending order. It is computed
/// from the number of inversions, which a merge sort counts in O(n log n). Source: W. R. Knight,
/// "A Computer Method for Calculating Kendall's Tau with Ungrouped Data", JASA 61 (1966).
fn kendall_tau(mut sequence: Vec<u32>) -> Option<f64> {
    let n = sequence.len() as u64;
    let pairs = n * n.checked_sub(1)? / 2;
    if pairs == 0 {
        return None;
    }
    let mut buffer = sequence.clone();
    let discordant = sort_counting_inversions(&mut sequence, &mut buffer);
    Some(1.0 - 2.0 * discordant as f64 / pairs as f64)
}

fn sort_counting_inversions(values: &mut [u32], buffer: &mut [u32]) -> u64 {
    let middle = values.len() / 2;
    if middle == 0 {
        return 0;
    }
    let mut inversions = sort_counting_inversions(&mut values[..middle], &mut buffer[..middle])
        + sort_counting_inversions(&mut values[middle..], &mut buffer[middle..]);
    let (mut left, mut right) = (0, middle);
    for slot in buffer.iter_mut() {
        let from_left = right == values.len() || (left < middle && values[left] <= values[right]);
        if from_left {
            *slot = values[left];
            left += 1;
        } else {
            // All remaining values on the left are larger than this one and were before it.
            inversions += (middle - left) as u64;
            *slot = values[right];
            right += 1;
        }
    }
    values.copy_from_slice(buffer);
    inversions
}

fn concentration(author_ids: &[u64], page: &[u32]) -> Concentration {
    let mut posts = BTreeMap::<u64, u32>::new();
    for &row in page {
        *posts.entry(author_ids[row as usize]).or_default() += 1;
    }
    let share = |&count: &u32| f64::from(count) / page.len() as f64;
    Concentration {
        distinct_authors: posts.len() as u32,
        max_share: posts.values().map(share).fold(0.0, f64::max),
        herfindahl: posts.values().map(share).map(|share| share * share).sum(),
    }
}

/// Samples of each measure from many comparisons. With a window, only the latest are kept.
#[derive(Debug, Clone)]
pub struct Comparisons {
    pub overlap: Samples,
    pub kendall_tau: Samples,
    pub entered: Samples,
    pub left: Samples,
    pub moved: Samples,
    pub distinct_authors_before: Samples,
    pub distinct_authors_after: Samples,
    pub max_share_before: Samples,
    pub max_share_after: Samples,
    pub herfindahl_before: Samples,
    pub herfindahl_after: Samples,
}

/// Distribution of each measure; null if nothing was measured.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ComparisonSummary {
    pub overlap: Option<Distribution>,
    pub kendall_tau: Option<Distribution>,
    pub entered: Option<Distribution>,
    pub left: Option<Distribution>,
    pub moved: Option<Distribution>,
    pub authors: AuthorsSummary,
}

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct AuthorsSummary {
    pub distinct_before: Option<Distribution>,
    pub distinct_after: Option<Distribution>,
    /// Share of the page's posts by the author with the most posts.
    pub max_share_before: Option<Distribution>,
    pub max_share_after: Option<Distribution>,
    /// Herfindahl–Hirschman index of the page.
    pub herfindahl_before: Option<Distribution>,
    pub herfindahl_after: Option<Distribution>,
}

impl Comparisons {
    /// Creates an empty collection that keeps the latest `window` comparisons.
    pub fn latest(window: usize) -> Self {
        let samples = || Samples::latest(window);
        Self {
            overlap: samples(),
            kendall_tau: samples(),
            entered: samples(),
            left: samples(),
            moved: samples(),
            distinct_authors_before: samples(),
            distinct_authors_after: samples(),
            max_share_before: samples(),
            max_share_after: samples(),
            herfindahl_before: samples(),
            herfindahl_after: samples(),
        }
    }

    pub fn push(&mut self, comparison: &Comparison) {
        let Comparison {
            overlap,
            kendall_tau,
            entered,
            left,
            moved,
            authors_before,
            authors_after,
        } = comparison;
        self.overlap.push(*overlap);
        if let Some(tau) = kendall_tau {
            self.kendall_tau.push(*tau);
        }
        self.entered.push(f64::from(*entered));
        self.left.push(f64::from(*left));
        self.moved.push(f64::from(*moved));
        self.distinct_authors_before
            .push(f64::from(authors_before.distinct_authors));
        self.distinct_authors_after
            .push(f64::from(authors_after.distinct_authors));
        self.max_share_before.push(authors_before.max_share);
        self.max_share_after.push(authors_after.max_share);
        self.herfindahl_before.push(authors_before.herfindahl);
        self.herfindahl_after.push(authors_after.herfindahl);
    }

    /// Adds another worker's comparisons.
    pub fn extend(&mut self, other: &Comparisons) {
        self.overlap.extend(&other.overlap);
        self.kendall_tau.extend(&other.kendall_tau);
        self.entered.extend(&other.entered);
        self.left.extend(&other.left);
        self.moved.extend(&other.moved);
        self.distinct_authors_before
            .extend(&other.distinct_authors_before);
        self.distinct_authors_after
            .extend(&other.distinct_authors_after);
        self.max_share_before.extend(&other.max_share_before);
        self.max_share_after.extend(&other.max_share_after);
        self.herfindahl_before.extend(&other.herfindahl_before);
        self.herfindahl_after.extend(&other.herfindahl_after);
    }

    pub fn summary(&self) -> ComparisonSummary {
        ComparisonSummary {
            overlap: self.overlap.distribution(),
            kendall_tau: self.kendall_tau.distribution(),
            entered: self.entered.distribution(),
            left: self.left.distribution(),
            moved: self.moved.distribution(),
            authors: AuthorsSummary {
                distinct_before: self.distinct_authors_before.distribution(),
                distinct_after: self.distinct_authors_after.distribution(),
                max_share_before: self.max_share_before.distribution(),
                max_share_after: self.max_share_after.distribution(),
                herfindahl_before: self.herfindahl_before.distribution(),
                herfindahl_after: self.herfindahl_after.distribution(),
            },
        }
    }
}

/// The latest values of one measure.
#[derive(Debug, Clone)]
pub struct Samples {
    values: Vec<f64>,
    window: usize,
    /// Index at which the next value is stored once the window is full.
    next: usize,
}

impl Samples {
    pub fn latest(window: usize) -> Self {
        Self {
            values: Vec::new(),
            window,
            next: 0,
        }
    }

    pub fn push(&mut self, value: f64) {
        if self.values.len() < self.window {
            self.values.push(value);
        } else if let Some(oldest) = self.values.get_mut(self.next) {
            *oldest = value;
            self.next = (self.next + 1) % self.window;
        }
    }

    /// Adds another worker's values.
    pub fn extend(&mut self, other: &Samples) {
        other.values.iter().for_each(|value| self.push(*value));
    }

    pub fn values(&self) -> &[f64] {
        &self.values
    }

    pub fn distribution(&self) -> Option<Distribution> {
        let mut sorted = self.values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        // Nearest rank: the smallest value that at least this share of the samples does not
        // exceed.
        let quantile = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted[rank.clamp(1, sorted.len()) - 1]
        };
        Some(Distribution {
            count: sorted.len() as u64,
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            min,
            p05: quantile(0.05),
            p50: quantile(0.50),
            p95: quantile(0.95),
            p99: quantile(0.99),
            max,
        })
    }
}

/// Summary of the samples. The quantiles use the nearest rank, so each is a measured value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Distribution {
    pub count: u64,
    pub mean: f64,
    pub min: f64,
    pub p05: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
