//! The totals of one UTC day, overall and by effective digest. This file counts and does no
//! I/O.

use nova_model::daily::{DailyCounts, DigestCounts};
use nova_model::event::Action;
use nova_model::time::UnixMs;
use std::collections::{BTreeMap, HashMap, HashSet};
use uuid::Uuid;

/// A ranking that was served to the viewer whose events are counted.
#[derive(Debug)]
pub(super) struct ServedRanking {
    pub ranking_id: Uuid,
    pub served_at_ms: UnixMs,
    pub digest: String,
    /// Post id → reason.
    pub reasons: HashMap<u64, String>,
}

/// An impression, a view, or any event that has a dwell time.
#[derive(Debug)]
pub(super) struct ShownEvent<'a> {
    pub event_time_ms: UnixMs,
    pub post_id: u64,
    pub action: &'a str,
    pub dwell_ms: Option<u64>,
    pub ranking_id: Option<Uuid>,
}

#[derive(Debug, Default)]
pub(super) struct DayTally {
    overall: Tally,
    by_digest: BTreeMap<String, Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    counts: DigestCounts,
    dwells_ms: Vec<u64>,
}

impl DayTally {
    /// Counts a ranking served on the day. `whole` is true if no part was missing.
    pub fn add_ranking(&mut self, digest: &str, posts: &[(u64, String)], whole: bool) {
        let distinct: HashSet<u64> = posts.iter().map(|(post_id, _)| *post_id).collect();
        let repeated = posts.len() - distinct.len();
        for tally in [
            &mut self.overall,
            self.by_digest.entry(digest.to_owned()).or_default(),
        ] {
            tally.counts.rankings += 1;
            tally.counts.rankings_whole += u64::from(whole);
            tally.counts.posts_served += posts.len() as u64;
            tally.counts.posts_repeated += repeated as u64;
        }
    }

    /// Counts an event of the day. `rankings` are those of its viewer, newest first.
    pub fn add_event(&mut self, event: &ShownEvent<'_>, rankings: &[ServedRanking]) {
        let ranking = ranking_of(event, rankings);
        let recommended = ranking
            .and_then(|ranking| ranking.reasons.get(&event.post_id))
            .is_some_and(|reason| reason != "followees");
        self.overall.add_event(event, recommended);
        if let Some(ranking) = ranking {
            let tally = self.by_digest.entry(ranking.digest.clone()).or_default();
            tally.add_event(event, recommended);
        }
    }

    pub fn finish(self) -> DailyCounts {
        let by_digest = self.by_digest.into_iter();
        DailyCounts {
            overall: self.overall.finish(),
            by_digest: by_digest
                .map(|(digest, tally)| (digest, tally.finish()))
                .collect(),
        }
    }
}

impl Tally {
    fn add_event(&mut self, event: &ShownEvent<'_>, recommended: bool) {
        match Action::parse(event.action) {
            Some(Action::Impression) => {
                self.counts.impressions += 1;
                self.counts.recommended_impressions += u64::from(recommended);
            }
            Some(Action::View) => {
                self.counts.views += 1;
                self.counts.recommended_views += u64::from(recommended);
            }
            _ => {}
        }
        self.dwells_ms.extend(event.dwell_ms);
    }

    fn finish(mut self) -> DigestCounts {
        self.dwells_ms.sort_unstable();
        self.counts.dwell_p50_ms = percentile(&self.dwells_ms, 0.50);
        self.counts.dwell_p95_ms = percentile(&self.dwells_ms, 0.95);
        self.counts
    }
}

/// Returns the ranking that the event names. If it names none, returns the viewer's latest
/// ranking at or before the event that contains the post. A named ranking that was never served
/// to this viewer is ignored, so that a client cannot change another policy's numbers by
/// inventing one.
fn ranking_of<'a>(
    event: &ShownEvent<'_>,
    rankings: &'a [ServedRanking],
) -> Option<&'a ServedRanking> {
    match event.ranking_id {
        Some(named) => rankings.iter().find(|ranking| ranking.ranking_id == named),
        None => rankings.iter().find(|ranking| {
            ranking.served_at_ms <= event.event_time_ms
                && ranking.reasons.contains_key(&event.post_id)
        }),
    }
}

/// Returns a percentile by linear interpolation between closest ranks (position `p·(n − 1)`,
/// the same as NumPy's default and ClickHouse's `quantileExactInclusive`). `sorted` is
/// ascending. Returns `None` if it is empty.
fn percentile(sorted: &[u64], p: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = p * last as f64;
    let below = position.floor() as usize;
    let low = *sorted.get(below)? as f64;
    let high = *sorted.get((below + 1).min(last))? as f64;
    Some(low + (high - low) * (position - below as f64))
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_interpolate_between_neighbours() {
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[7], 0.95), Some(7.0));
        assert_eq!(percentile(&[10, 20], 0.5), Some(15.0));
        assert_eq!(percentile(&[0, 10, 20, 30, 40], 0.95), Some(38.0));
    }
}
