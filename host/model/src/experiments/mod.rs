//! Experiments as data, with their pure rules: specs, cohorts and assignment.

pub mod assignment;
pub mod cohort;
pub mod spec;

use std::sync::Arc;

/// The variation of an experiment that a viewer is assigned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub experiment: Arc<str>,
    pub variation: Arc<str>,
}
