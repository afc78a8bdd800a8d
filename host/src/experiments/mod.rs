//! Exposures of experiments: the record of what was served to whom. Specs, cohorts and assignment
//! are in `nova_model::experiments`, routing is in `nova_control::routing`.

pub mod exposure;
pub mod served;
