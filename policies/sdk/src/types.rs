//! The arguments and results of the policy contract as plain types, independent of components.

/// The input that the three stages of one ranking share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The viewer.
    pub user_id: u64,
    /// The time of this ranking, milliseconds since the Unix epoch, UTC.
    pub now_ms: u64,
    /// The only source of randomness. It is fixed for one ranking and recorded with it.
    pub seed: u64,
    /// Requested page size.
    pub limit: u32,
}

/// `n` candidates, column by column: feature `k` of candidate `i` is `features[k * n + i]`.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    /// One id per candidate. `n` is the length of this column.
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
    /// One id per candidate. `n` is the length of this column.
    pub post_ids: &'a [u64],
    /// The author of each post.
    pub author_ids: &'a [u64],
    /// Milliseconds since the Unix epoch, UTC.
    pub created_at_ms: &'a [u64],
    /// The declared features in declared order, `n` values each.
    pub features: &'a [f32],
    /// Scores in descending order.
    pub scores: &'a [f32],
}

/// A number that a policy version may set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    /// Name, as in `params = { … }` of a `policy.toml`.
    pub name: &'static str,
    /// Used if the policy sets no value.
    pub default: f64,
    /// Inclusive.
    pub min: f64,
    /// Inclusive.
    pub max: f64,
    /// One line of documentation.
    pub doc: &'static str,
}

/// The description that a module gives of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Description {
    /// The crate's name.
    pub name: &'static str,
    /// The crate's version.
    pub version: &'static str,
    /// The features it reads, in the order of their columns.
    pub features: &'static [&'static str],
    /// The parameters it takes, in the order of `params`.
    pub parameters: &'static [Parameter],
    /// A scorer: the names of the columns of `explain`. The other stages: the text of each reason
    /// code.
    pub explains: &'static [&'static str],
}

impl Description {
    /// Returns the default of every parameter in declared order, for a policy that sets none.
    pub fn default_params(&self) -> Vec<f64> {
        self.parameters
            .iter()
            .map(|parameter| parameter.default)
            .collect()
    }
}
