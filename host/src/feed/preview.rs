//! Preview of a policy for its author: shows the ranking of one viewer. Caches nothing and
//! records nothing.

use super::Feed;
use super::candidates::fetch;
use nova_model::failure::PolicyFailure;
use nova_model::features::CandidateSet;
use nova_policy::loaded::LoadedPolicy;
use nova_policy::pool::{Lane, Wait};
use nova_policy::ranking::{RankInput, rank};
use nova_policy_sdk::Request;
use nova_support::clock::unix_ms;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time limit of a preview. A policy that misses its own deadline is shown anyway, with the time
/// that it took.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Candidates of one viewer at one moment, for ranking by several policies.
#[derive(Debug, Clone)]
pub struct Preview {
    set: Arc<CandidateSet>,
    seen: Arc<Vec<bool>>,
    request: Request,
}

/// The first posts of one ranking.
#[derive(Debug, Clone, Default)]
pub struct Ranked {
    pub posts: Vec<PreviewPost>,
    pub took: Duration,
}

/// A post at its position in the ranking.
#[derive(Debug, Clone, PartialEq)]
pub struct PreviewPost {
    pub post_id: u64,
    pub author_id: u64,
    pub age_hours: f64,
    pub score: f32,
}

impl Preview {
    /// Fetches the candidates of `viewer`.
    ///
    /// # Errors
    /// No candidate source answers, or the seen posts cannot be read.
    pub async fn fetch(feed: &Feed, viewer: u64, limit: u32) -> anyhow::Result<Self> {
        let now_ms = unix_ms();
        let timeout = feed.source_timeout();
        let fetched = fetch(feed.stores().candidates.as_ref(), viewer, now_ms, timeout).await;
        anyhow::ensure!(!fetched.failed, "no candidate source answers");
        let seen = feed
            .stores()
            .seen
            .among(viewer, &fetched.set.post_ids, now_ms)
            .await?
            .seen;
        Ok(Self {
            set: Arc::new(fetched.set),
            seen: Arc::new(seen),
            request: Request {
                user_id: viewer,
                now_ms,
                seed: 0,
                limit,
            },
        })
    }

    /// Ranks the candidates with `policy` and returns the first posts.
    ///
    /// # Errors
    /// The reason why the policy failed, or that no worker was free.
    pub async fn ranked_by(
        &self,
        feed: &Feed,
        policy: Arc<LoadedPolicy>,
    ) -> anyhow::Result<Ranked> {
        let preview = self.clone();
        let run = move || -> Result<Ranked, PolicyFailure> {
            let input = RankInput {
                request: &preview.request,
                set: &preview.set,
                seen: &preview.seen,
            };
            let began = Instant::now();
            let ranking = rank(
                &policy.running(policy.budget_without_deadline(TIME_LIMIT)),
                input,
            )?;
            let took = began.elapsed();
            let shown = ranking.rows.iter().zip(&ranking.scores);
            let posts = shown
                .take(preview.request.limit as usize)
                .map(|(&row, &score)| preview.post(row as usize, score))
                .collect();
            Ok(Ranked { posts, took })
        };
        let pool = &feed.parts.policy_pool;
        Ok(pool.run(Lane::Aside, Wait::of(TIME_LIMIT), run).await??)
    }

    fn post(&self, row: usize, score: f32) -> PreviewPost {
        let age_ms = self
            .request
            .now_ms
            .saturating_sub(self.set.created_at_ms[row]);
        PreviewPost {
            post_id: self.set.post_ids[row],
            author_id: self.set.author_ids[row],
            age_hours: age_ms as f64 / 3_600_000.0,
            score,
        }
    }
}
