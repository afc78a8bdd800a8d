//! Experiments: the policy that each viewer gets (pure assignment, cohorts and routing), and the
//! record of what was served.

pub mod assignment;
pub mod cohort;
pub mod exposure;
pub mod routing;
pub mod served;
pub mod spec;
