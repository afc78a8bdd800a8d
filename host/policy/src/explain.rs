//! The explanation of a ranking, stage by stage: each module's input, its answer and its reasons.
//! It runs off the hot path.

use super::loaded::LoadedPolicy;
use super::module::CallBudget;
use super::ranking::{Columns, RankInput, Trace, check_length, trace};
use nova_model::artifact::Stage;
use nova_model::failure::PolicyFailure;
use serde::Serialize;
use std::collections::BTreeMap;

/// One candidate's path through the stages.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ExplainedPost {
    pub post_id: u64,
    pub author_id: u64,
    /// One of followees, affinity, trending and recent.
    pub source: &'static str,
    /// Every feature that a stage of this policy reads. Values are widened to `f64`, because the
    /// shortest decimal text of an `f32` reads as another `f64`, too far off to recompute an old
    /// post's score.
    pub features: BTreeMap<String, f64>,
    pub dedup: String,
    /// Position among the posts that dedup kept, from 0. Null if dedup removed the post.
    pub position_after_dedup: Option<usize>,
    /// Null if dedup removed the post.
    pub score: Option<f32>,
    pub score_components: BTreeMap<String, f32>,
    /// Position by score alone, from 0.
    pub position_by_score: Option<usize>,
    pub saturation: Option<String>,
    /// Position as shown, from 0.
    pub position: Option<usize>,
}

/// Explains a ranking. Runs the stages as for serving and then asks each for its reasons.
///
/// # Errors
/// Returns the first failure of a stage.
pub fn explain(
    policy: &LoadedPolicy,
    budget: CallBudget,
    input: RankInput<'_>,
) -> Result<Vec<ExplainedPost>, PolicyFailure> {
    let trace = trace(&policy.running(budget), input)?;
    let mut posts = explain_dedup(policy, budget, input)?;
    for (position, &row) in trace.kept.iter().enumerate() {
        posts[row as usize].position_after_dedup = Some(position);
    }
    explain_scores(policy, budget, input, &trace, &mut posts)?;
    explain_saturation(policy, budget, input, &trace, &mut posts)?;
    for (position, &row) in trace.ranking.rows.iter().enumerate() {
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

/// Returns every candidate with the reason that dedup gives for it.
fn explain_dedup(
    policy: &LoadedPolicy,
    budget: CallBudget,
    input: RankInput<'_>,
) -> Result<Vec<ExplainedPost>, PolicyFailure> {
    let (set, module) = (input.set, &policy.modules.dedup);
    let all = Columns::gather(&module.features, input, (0..set.len() as u32).collect());
    let call = policy.call(budget, Stage::Dedup, input.request);
    let codes = module.explain_dedup(call, &all.candidates())?;
    check_length(Stage::Dedup, codes.len(), set.len())?;
    let post = |row: usize| ExplainedPost {
        post_id: set.post_ids[row],
        author_id: set.author_ids[row],
        source: set.sources[row].reason(),
        features: features_of(policy, input, row as u32),
        dedup: reason(&module.description.explains, codes.get(row)),
        position_after_dedup: None,
        score: None,
        score_components: BTreeMap::new(),
        position_by_score: None,
        saturation: None,
        position: None,
    };
    Ok((0..set.len()).map(post).collect())
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
    trace: &Trace,
    posts: &mut [ExplainedPost],
) -> Result<(), PolicyFailure> {
    let module = &policy.modules.score;
    // The rows are in dedup's order, as they were scored, because a scorer may look at
    // neighbouring rows.
    let columns = Columns::gather(&module.features, input, trace.kept.clone());
    let call = policy.call(budget, Stage::Score, input.request);
    let parts = module.explain_score(call, &columns.candidates())?;
    // With another length, every part but the first would be shown for other posts.
    let components = module.description.explains.len();
    check_length(Stage::Score, parts.len(), components * trace.kept.len())?;
    for (at, &row) in trace.kept.iter().enumerate() {
        for (component, name) in module.description.explains.iter().enumerate() {
            if let Some(value) = parts.get(component * trace.kept.len() + at) {
                let components = &mut posts[row as usize].score_components;
                components.insert(name.clone(), *value);
            }
        }
    }
    for (&row, &score) in trace.by_score.iter().zip(&trace.scores) {
        posts[row as usize].score = Some(score);
    }
    Ok(())
}

fn explain_saturation(
    policy: &LoadedPolicy,
    budget: CallBudget,
    input: RankInput<'_>,
    trace: &Trace,
    posts: &mut [ExplainedPost],
) -> Result<(), PolicyFailure> {
    let module = &policy.modules.saturation;
    let columns = Columns::gather(&module.features, input, trace.by_score.clone());
    let ranked = columns.ranked(&trace.scores);
    let call = policy.call(budget, Stage::Saturation, input.request);
    let codes = module.explain_saturation(call, &ranked)?;
    check_length(Stage::Saturation, codes.len(), trace.by_score.len())?;
    for (position, &row) in trace.by_score.iter().enumerate() {
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
