//! Who sees which policy: assignment (pure), cohorts (pure), and the record of what was shown.

pub mod assignment;
pub mod cohort;
pub mod exposure;
pub mod routing;
pub mod served;
pub mod spec;
