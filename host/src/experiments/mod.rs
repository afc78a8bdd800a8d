//! Experiments: the policy that each viewer gets (pure assignment, cohorts and routing), and the
//! record of what was served.

pub mod exposure;
pub mod served;
