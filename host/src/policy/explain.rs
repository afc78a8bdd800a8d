//! A ranking, told stage by stage: what each module saw, what it answered and why. Off the hot path.

use super::artifact::Stage;
use super::failure::PolicyFailure;
use super::loaded::LoadedPolicy;
use super::module::CallBudget;
use super::ranking::{Columns, RankInput, best_first, rank};
use serde::Serialize;
use std::collections::BTreeMap;

/// One candidate's way through the stages.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ExplainedPost {
    pub post_id: u64,
    pub author_id: u64,
    /// followees, affinity, trending or recent.
    pub source: &'static str,
    /// Every feature that a stage of this policy reads. Widened: the shortest text of an `f32` is
    /// another number, too far off to recompute an old post's score from.
    pub features: BTreeMap<String, f64>,
    pub dedup: String,
    /// Null when dedup removed it.
    pub score: Option<f32>,
    pub score_components: BTreeMap<String, f32>,
    /// By score alone, from 0.
    pub position_by_score: Option<usize>,
    pub saturation: Option<String>,
    /// As shown, from 0.
    pub position: Option<usize>,
}

/// Explains a ranking. Each stage is run as it would be served, and asked for its reasons beside.
///
/// # Errors
/// The first failure of a stage.
pub fn explain(
    policy: &LoadedPolicy,
    budget: CallBudget,
    input: RankInput<'_>,
) -> Result<Vec<ExplainedPost>, PolicyFailure> {
    let set = input.set;
    let ranking = rank(&policy.running(budget), input)?;
    let all = Columns::gather(
        &policy.modules.dedup.features,
        input,
        (0..set.len() as u32).collect(),
    );
    let dedup = &policy.modules.dedup;
    let dedup_codes = dedup.explain_dedup(
        budget,
        input.request,
        policy.params(Stage::Dedup),
        &all.candidates(),
    )?;
    let mut posts: Vec<ExplainedPost> = (0..set.len())
        .map(|row| ExplainedPost {
            post_id: set.post_ids[row],
            author_id: set.author_ids[row],
            source: set.sources[row].reason(),
            features: features_of(policy, input, row as u32),
            dedup: reason(&dedup.description.explains, dedup_codes.get(row)),
            score: None,
            score_components: BTreeMap::new(),
            position_by_score: None,
            saturation: None,
            position: None,
        })
        .collect();
    let mut kept_rows = ranking.rows.clone();
    kept_rows.sort_unstable();
    let scores = explain_scores(policy, budget, input, &kept_rows, &mut posts)?;
    explain_positions(policy, budget, input, (&kept_rows, &scores), &mut posts)?;
    for (position, &row) in ranking.rows.iter().enumerate() {
        posts[row as usize].position = Some(position);
    }
    posts.sort_by_key(|post| {
        (
            post.position.unwrap_or(usize::MAX),
            std::cmp::Reverse(post.post_id),
        )
    });
    Ok(posts)
}

fn features_of(policy: &LoadedPolicy, input: RankInput<'_>, row: u32) -> BTreeMap<String, f64> {
    let mut features = BTreeMap::new();
    for feature in Stage::ALL
        .iter()
        .flat_map(|stage| &policy.modules.get(*stage).features)
    {
        let mut column = Vec::with_capacity(1);
        feature.append_column(
            input.set,
            input.seen,
            input.request.now_ms,
            &[row],
            &mut column,
        );
        features.extend(
            column
                .first()
                .map(|value| (feature.name().to_owned(), f64::from(*value))),
        );
    }
    features
}

fn explain_scores(
    policy: &LoadedPolicy,
    budget: CallBudget,
    input: RankInput<'_>,
    rows: &[u32],
    posts: &mut [ExplainedPost],
) -> Result<Vec<f32>, PolicyFailure> {
    let module = &policy.modules.score;
    let columns = Columns::gather(&module.features, input, rows.to_vec());
    let params = policy.params(Stage::Score);
    let scores = module.score(budget, input.request, params, &columns.candidates())?;
    let parts = module.explain_score(budget, input.request, params, &columns.candidates())?;
    for (at, &row) in rows.iter().enumerate() {
        let post = &mut posts[row as usize];
        post.score = scores.get(at).copied();
        for (component, name) in module.description.explains.iter().enumerate() {
            if let Some(value) = parts.get(component * rows.len() + at) {
                post.score_components.insert(name.clone(), *value);
            }
        }
    }
    Ok(scores)
}

fn explain_positions(
    policy: &LoadedPolicy,
    budget: CallBudget,
    input: RankInput<'_>,
    (rows, scores): (&[u32], &[f32]),
    posts: &mut [ExplainedPost],
) -> Result<(), PolicyFailure> {
    let module = &policy.modules.saturation;
    let ids: Vec<u64> = rows
        .iter()
        .map(|&row| input.set.post_ids[row as usize])
        .collect();
    let order = best_first(scores, &ids);
    let ranked_rows: Vec<u32> = order.iter().map(|&at| rows[at as usize]).collect();
    let ranked_scores: Vec<f32> = order.iter().map(|&at| scores[at as usize]).collect();
    let ranked = Columns::gather(&module.features, input, ranked_rows.clone());
    let params = policy.params(Stage::Saturation);
    let codes = module.explain_saturation(
        budget,
        input.request,
        params,
        &ranked.ranked(&ranked_scores),
    )?;
    for (position, &row) in ranked_rows.iter().enumerate() {
        let post = &mut posts[row as usize];
        post.position_by_score = Some(position);
        post.saturation = Some(reason(&module.description.explains, codes.get(position)));
    }
    Ok(())
}

fn reason(reasons: &[String], code: Option<&u32>) -> String {
    let known = code.and_then(|&code| reasons.get(code as usize)).cloned();
    known.unwrap_or_else(|| match code {
        Some(code) => format!("reason {code}, which the module does not name"),
        None => "not explained by the module".to_owned(),
    })
}
