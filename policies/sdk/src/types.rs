//! The arguments and answers of the policy contract as plain types, without a component around them.

/// What the three stages of one ranking share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The viewer.
    pub user_id: u64,
    /// The time of this ranking, milliseconds since the Unix epoch, UTC.
    pub now_ms: u64,
    /// The only source of randomness: fixed for one ranking, recorded with it.
    pub seed: u64,
    /// Page size the viewer asked for.
    pub limit: u32,
}

/// `n` candidates, column by column: feature `k` of candidate `i` is `features[k * n + i]`.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    /// One id each; `n` is the length of this column.
    pub post_ids: &'a [u64],
    /// The author of each post.
    pub author_ids: &'a [u64],
    /// Milliseconds since the Unix epoch, UTC.
    pub created_at_ms: &'a [u64],
    /// The declared features in declared order, `n` values each.
    pub features: &'a [f32],
}

/// [`Candidates`] in the order of their scores, best first.
#[derive(Debug, Clone, Copy)]
pub struct Ranked<'a> {
    /// One id each; `n` is the length of this column.
    pub post_ids: &'a [u64],
    /// The author of each post.
    pub author_ids: &'a [u64],
    /// Milliseconds since the Unix epoch, UTC.
    pub created_at_ms: &'a [u64],
    /// The declared features in declared order, `n` values each.
    pub features: &'a [f32],
    /// Descending.
    pub scores: &'a [f32],
}

/// A number that a policy version may set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    /// As in `params = { … }` of a `policy.toml`.
    pub name: &'static str,
    /// Used where the policy says nothing.
    pub default: f64,
    /// Inclusive.
    pub min: f64,
    /// Inclusive.
    pub max: f64,
    /// One line.
    pub doc: &'static str,
}

/// What a module says of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Description {
    /// The crate's name.
    pub name: &'static str,
    /// The crate's version.
    pub version: &'static str,
    /// The features it reads, in the order of the columns it wants.
    pub features: &'static [&'static str],
    /// The parameters it takes, in the order of `params`.
    pub parameters: &'static [Parameter],
    /// A scorer: the names of the columns of `explain`. The other stages: the text behind each
    /// reason code.
    pub explains: &'static [&'static str],
}

impl Description {
    /// The default of every parameter, in declared order: what to pass where a policy sets nothing.
    pub fn default_params(&self) -> Vec<f64> {
        self.parameters
            .iter()
            .map(|parameter| parameter.default)
            .collect()
    }
}
