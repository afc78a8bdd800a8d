//! The parts of a response that are missing because a store or a policy failed.

use std::collections::BTreeSet;

/// Names of the parts that did not answer during one request, without repeats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DegradedParts(BTreeSet<&'static str>);

impl DegradedParts {
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// The names as a response lists them, in alphabetical order.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|part| (*part).to_owned()).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&'static str> for DegradedParts {
    fn from(part: &'static str) -> Self {
        Self(BTreeSet::from([part]))
    }
}

/// `None` if nothing is missing.
impl From<Option<&'static str>> for DegradedParts {
    fn from(part: Option<&'static str>) -> Self {
        Self(part.into_iter().collect())
    }
}
