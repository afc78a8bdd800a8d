//! Unit tests of a policy, natively, in a few lines.
//!
//! ```
//! # nova_policy_sdk::scorer! { features { likes } explains { likes } each: parts }
//! # fn parts(post: &Post, _: &Params, _: &nova_policy_sdk::Request) -> [f64; 1] { [post.likes] }
//! # fn main() {
//! use nova_policy_sdk::testing::Sample;
//!
//! let sample = Sample::new(describe()).row(&[("likes", 3.0)]).row(&[("likes", 5.0)]);
//! assert_eq!(sample.score(score), [3.0, 5.0]);
//! # }
//! ```

use crate::{Candidates, Description, Ranked, Request};

/// Candidates given row by row with named features. Parameters have their defaults.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The request that the policy gets.
    pub request: Request,
    description: Description,
    params: Vec<f64>,
    post_ids: Vec<u64>,
    author_ids: Vec<u64>,
    created_at_ms: Vec<u64>,
    scores: Vec<f32>,
    rows: Vec<Vec<f32>>,
}

impl Sample {
    /// Creates a sample without candidates and with every parameter at its default.
    pub fn new(description: Description) -> Self {
        Self {
            request: Request {
                user_id: 1,
                now_ms: 1_700_000_000_000,
                seed: 0,
                limit: 50,
            },
            params: description.default_params(),
            description,
            post_ids: Vec::new(),
            author_ids: Vec::new(),
            created_at_ms: Vec::new(),
            scores: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Sets a declared parameter.
    ///
    /// # Panics
    /// If the policy declares no such parameter, or the value is outside its range.
    #[must_use]
    pub fn param(mut self, name: &str, value: f64) -> Self {
        let declared = self.description.parameters;
        let index = declared.iter().position(|parameter| parameter.name == name);
        let index = index.unwrap_or_else(|| panic!("no parameter `{name}` is declared"));
        let (min, max) = (declared[index].min, declared[index].max);
        assert!(
            (min..=max).contains(&value),
            "`{name}` = {value} is outside {min}..={max}"
        );
        self.params[index] = value;
        self
    }

    /// Adds a candidate with an id and an author of its own, created at the time of the request. A
    /// feature that is not named is 0.
    ///
    /// # Panics
    /// If a feature is not declared.
    #[must_use]
    pub fn row(self, features: &[(&str, f32)]) -> Self {
        let (id, now_ms) = (self.post_ids.len() as u64 + 1, self.request.now_ms);
        self.post(id, id, now_ms, features)
    }

    /// Adds a candidate. A feature that is not named is 0.
    ///
    /// # Panics
    /// If a feature is not declared.
    #[must_use]
    pub fn post(
        mut self,
        post_id: u64,
        author_id: u64,
        created_at_ms: u64,
        features: &[(&str, f32)],
    ) -> Self {
        let mut row = vec![0.0; self.description.features.len()];
        for (name, value) in features {
            let index = self
                .description
                .features
                .iter()
                .position(|feature| feature == name);
            row[index.unwrap_or_else(|| panic!("no feature `{name}` is declared"))] = *value;
        }
        self.post_ids.push(post_id);
        self.author_ids.push(author_id);
        self.created_at_ms.push(created_at_ms);
        self.scores.push(0.0);
        self.rows.push(row);
        self
    }

    /// Sets the score of the last candidate, for a saturator.
    ///
    /// # Panics
    /// If there is no candidate yet.
    #[must_use]
    pub fn scored(mut self, score: f32) -> Self {
        *self
            .scores
            .last_mut()
            .expect("a candidate to give a score to") = score;
        self
    }

    /// Calls a scorer's `score` or `explain`.
    pub fn score(&self, f: impl FnOnce(&Request, &[f64], &Candidates<'_>) -> Vec<f32>) -> Vec<f32> {
        self.with_candidates(f)
    }

    /// Calls a deduper's `dedup` or `explain`.
    pub fn dedup(&self, f: impl FnOnce(&Request, &[f64], &Candidates<'_>) -> Vec<u32>) -> Vec<u32> {
        self.with_candidates(f)
    }

    /// Calls a saturator's `saturate` or `explain`, with the candidates in the order of addition.
    pub fn saturate(&self, f: impl FnOnce(&Request, &[f64], &Ranked<'_>) -> Vec<u32>) -> Vec<u32> {
        let ranked = Ranked {
            post_ids: &self.post_ids,
            author_ids: &self.author_ids,
            created_at_ms: &self.created_at_ms,
            features: &self.matrix(),
            scores: &self.scores,
        };
        f(&self.request, &self.params, &ranked)
    }

    fn with_candidates<T>(&self, f: impl FnOnce(&Request, &[f64], &Candidates<'_>) -> T) -> T {
        let candidates = Candidates {
            post_ids: &self.post_ids,
            author_ids: &self.author_ids,
            created_at_ms: &self.created_at_ms,
            features: &self.matrix(),
        };
        f(&self.request, &self.params, &candidates)
    }

    fn matrix(&self) -> Vec<f32> {
        (0..self.description.features.len())
            .flat_map(|feature| self.rows.iter().map(move |row| row[feature]))
            .collect()
    }
}
