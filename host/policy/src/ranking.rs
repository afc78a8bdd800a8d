//! The ranking pipeline: dedup → score → sort → saturation. It is the same for a loaded policy and
//! for the native copy.
//!
//! Every answer of a stage is checked here: its length, the range of its indices, repeated indices,
//! and scores that are not finite. A violation is a failure of the policy, never a bad page.

use nova_model::artifact::Stage;
use nova_model::failure::{FailureKind, PolicyFailure};
use nova_model::features::{CandidateSet, Feature};
use nova_policy_sdk::{Candidates, Ranked, Request};
use std::time::{Duration, Instant};

/// Input of a ranking: the candidates of one viewer and which of them the viewer has seen.
#[derive(Debug, Clone, Copy)]
pub struct RankInput<'a> {
    pub request: &'a Request,
    pub set: &'a CandidateSet,
    /// One flag per candidate.
    pub seen: &'a [bool],
}

/// The order to show, as rows of the candidate set, and the score of each row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranking {
    pub rows: Vec<u32>,
    pub scores: Vec<f32>,
    /// Candidates that dedup removed.
    pub removed: u32,
    /// Posts that saturation moved from their position by score.
    pub moved: u32,
}

/// A ranking and its intermediate results. All rows are rows of the candidate set.
#[derive(Debug, Default)]
pub struct Trace {
    /// Rows that dedup kept, in the order it returned them.
    pub kept: Vec<u32>,
    /// The same rows by score, best first. `scores` is parallel to it.
    pub by_score: Vec<u32>,
    pub scores: Vec<f32>,
    pub ranking: Ranking,
}

/// The three stages of a ranking, implemented by a loaded policy and by the native copy.
pub trait Stages {
    /// Returns the features that the stage reads, in the order it declares them.
    fn features(&self, stage: Stage) -> &[Feature];
    fn dedup(
        &self,
        request: &Request,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<u32>, PolicyFailure>;
    fn score(
        &self,
        request: &Request,
        candidates: &Candidates<'_>,
    ) -> Result<Vec<f32>, PolicyFailure>;
    fn saturate(&self, request: &Request, ranked: &Ranked<'_>) -> Result<Vec<u32>, PolicyFailure>;
    /// Called after each stage, once its answer has been checked.
    fn observe(&self, _stage: Stage, _took: Duration, _failure: Option<FailureKind>) {}
}

/// Ranks the candidates. The result contains only candidates, each at most once.
///
/// # Errors
/// Returns the first failure of a stage, including breaches of its contract.
pub fn rank(stages: &impl Stages, input: RankInput<'_>) -> Result<Ranking, PolicyFailure> {
    Ok(trace(stages, input)?.ranking)
}

/// Ranks like [`rank`] and also returns the intermediate results. They cost nothing extra,
/// because each is an input column of the next stage.
///
/// # Errors
/// Fails as [`rank`] does.
pub fn trace(stages: &impl Stages, input: RankInput<'_>) -> Result<Trace, PolicyFailure> {
    if input.set.is_empty() {
        return Ok(Trace::default());
    }
    let all = Columns::gather(
        stages.features(Stage::Dedup),
        input,
        (0..input.set.len() as u32).collect(),
    );
    let kept = observed(stages, Stage::Dedup, || {
        let kept = stages.dedup(input.request, &all.candidates())?;
        check_kept(&kept, all.rows.len())?;
        Ok(kept)
    })?;

    let kept = Columns::gather(stages.features(Stage::Score), input, all.select(&kept));
    let scores = observed(stages, Stage::Score, || {
        let scores = stages.score(input.request, &kept.candidates())?;
        check_scores(&scores, kept.rows.len())?;
        Ok(scores)
    })?;

    let best_first = best_first(&scores, &kept.post_ids);
    let scores: Vec<f32> = best_first.iter().map(|&at| scores[at as usize]).collect();
    let ranked = Columns::gather(
        stages.features(Stage::Saturation),
        input,
        kept.select(&best_first),
    );
    let shown = observed(stages, Stage::Saturation, || {
        let shown = stages.saturate(input.request, &ranked.ranked(&scores))?;
        check_permutation(&shown, ranked.rows.len())?;
        Ok(shown)
    })?;

    let ranking = Ranking {
        rows: ranked.select(&shown),
        scores: shown.iter().map(|&at| scores[at as usize]).collect(),
        removed: (all.rows.len() - kept.rows.len()) as u32,
        moved: shown
            .iter()
            .enumerate()
            .filter(|&(position, &at)| position != at as usize)
            .count() as u32,
    };
    Ok(Trace {
        kept: kept.rows,
        by_score: ranked.rows,
        scores,
        ranking,
    })
}

fn observed<T>(
    stages: &impl Stages,
    stage: Stage,
    run: impl FnOnce() -> Result<T, PolicyFailure>,
) -> Result<T, PolicyFailure> {
    let started = Instant::now();
    let result = run();
    stages.observe(
        stage,
        started.elapsed(),
        result.as_ref().err().map(|failure| failure.kind),
    );
    result
}

/// Returns indices by score descending, then by higher post id. Scores are finite here, but
/// `total_cmp` keeps the order total for any value.
pub fn best_first(scores: &[f32], post_ids: &[u64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| {
        let (a, b) = (a as usize, b as usize);
        scores[b]
            .total_cmp(&scores[a])
            .then_with(|| post_ids[b].cmp(&post_ids[a]))
    });
    order
}

/// Some rows of a candidate set, with the feature columns that one stage reads.
#[derive(Debug)]
pub struct Columns {
    pub rows: Vec<u32>,
    pub post_ids: Vec<u64>,
    author_ids: Vec<u64>,
    created_at_ms: Vec<u64>,
    features: Vec<f32>,
}

impl Columns {
    pub fn gather(features: &[Feature], input: RankInput<'_>, rows: Vec<u32>) -> Self {
        let RankInput { set, seen, request } = input;
        let mut matrix = Vec::with_capacity(features.len() * rows.len());
        for feature in features {
            feature.append_column(set, seen, request.now_ms, &rows, &mut matrix);
        }
        Self {
            post_ids: rows.iter().map(|&row| set.post_ids[row as usize]).collect(),
            author_ids: rows
                .iter()
                .map(|&row| set.author_ids[row as usize])
                .collect(),
            created_at_ms: rows
                .iter()
                .map(|&row| set.created_at_ms[row as usize])
                .collect(),
            features: matrix,
            rows,
        }
    }

    pub fn candidates(&self) -> Candidates<'_> {
        Candidates {
            post_ids: &self.post_ids,
            author_ids: &self.author_ids,
            created_at_ms: &self.created_at_ms,
            features: &self.features,
        }
    }

    pub fn ranked<'a>(&'a self, scores: &'a [f32]) -> Ranked<'a> {
        Ranked {
            post_ids: &self.post_ids,
            author_ids: &self.author_ids,
            created_at_ms: &self.created_at_ms,
            features: &self.features,
            scores,
        }
    }

    /// Maps indices into these columns to rows of the candidate set.
    pub fn select(&self, indices: &[u32]) -> Vec<u32> {
        indices.iter().map(|&at| self.rows[at as usize]).collect()
    }
}

/// Checks that the indices are unique and in range, and that dedup kept at least one candidate if
/// there were any.
pub(super) fn check_kept(kept: &[u32], candidates: usize) -> Result<(), PolicyFailure> {
    if kept.is_empty() && candidates > 0 {
        return Err(PolicyFailure::new(
            Stage::Dedup,
            FailureKind::ContractEmpty,
            format!("kept none of {candidates} candidates"),
        ));
    }
    check_unique(Stage::Dedup, kept, candidates)
}

/// Checks that there is one finite number per candidate.
pub(super) fn check_scores(scores: &[f32], candidates: usize) -> Result<(), PolicyFailure> {
    check_length(Stage::Score, scores.len(), candidates)?;
    match scores.iter().position(|score| !score.is_finite()) {
        None => Ok(()),
        Some(at) => Err(PolicyFailure::new(
            Stage::Score,
            FailureKind::ContractNonfinite,
            format!("score {} of candidate {at} is not finite", scores[at]),
        )),
    }
}

/// Checks that every index occurs exactly once.
pub(super) fn check_permutation(shown: &[u32], ranked: usize) -> Result<(), PolicyFailure> {
    check_length(Stage::Saturation, shown.len(), ranked)?;
    check_unique(Stage::Saturation, shown, ranked)
}

pub(super) fn check_length(
    stage: Stage,
    answered: usize,
    asked: usize,
) -> Result<(), PolicyFailure> {
    if answered == asked {
        return Ok(());
    }
    Err(PolicyFailure::new(
        stage,
        FailureKind::ContractLength,
        format!("answered {answered} values for {asked}"),
    ))
}

fn check_unique(stage: Stage, indices: &[u32], bound: usize) -> Result<(), PolicyFailure> {
    let mut taken = vec![false; bound];
    for &index in indices {
        match taken.get_mut(index as usize) {
            None => {
                let detail = format!("index {index} of {bound}");
                return Err(PolicyFailure::new(
                    stage,
                    FailureKind::ContractRange,
                    detail,
                ));
            }
            Some(true) => {
                let detail = format!("index {index} twice");
                return Err(PolicyFailure::new(
                    stage,
                    FailureKind::ContractRepeat,
                    detail,
                ));
            }
            Some(free) => *free = true,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(result: Result<(), PolicyFailure>) -> Option<FailureKind> {
        result.err().map(|failure| failure.kind)
    }

    #[test]
    fn every_breach_of_the_output_contract_has_its_kind() {
        assert_eq!(kind(check_kept(&[], 3)), Some(FailureKind::ContractEmpty));
        assert_eq!(
            kind(check_kept(&[0, 3], 3)),
            Some(FailureKind::ContractRange)
        );
        assert_eq!(
            kind(check_kept(&[1, 1], 3)),
            Some(FailureKind::ContractRepeat)
        );
        assert_eq!(kind(check_kept(&[2, 0], 3)), None);
        assert_eq!(
            kind(check_scores(&[1.0], 2)),
            Some(FailureKind::ContractLength)
        );
        assert_eq!(
            kind(check_scores(&[1.0, f32::NAN], 2)),
            Some(FailureKind::ContractNonfinite)
        );
        assert_eq!(
            kind(check_scores(&[1.0, f32::NEG_INFINITY], 2)),
            Some(FailureKind::ContractNonfinite)
        );
        assert_eq!(
            kind(check_permutation(&[0, 1], 3)),
            Some(FailureKind::ContractLength)
        );
        assert_eq!(
            kind(check_permutation(&[0, 1, 1], 3)),
            Some(FailureKind::ContractRepeat)
        );
        assert_eq!(kind(check_permutation(&[2, 0, 1], 3)), None);
    }

    #[test]
    fn equal_scores_put_the_higher_post_id_first() {
        assert_eq!(best_first(&[1.0, 2.0, 1.0], &[10, 20, 30]), [1, 2, 0]);
        assert_eq!(
            best_first(&[0.0, -0.0, f32::NEG_INFINITY], &[1, 2, 3]),
            [0, 1, 2]
        );
    }
}
