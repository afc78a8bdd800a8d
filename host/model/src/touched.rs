//! The rows of the registry that its audit log says were changed, so that a host reads these rows
//! and not the whole registry. A row that was removed is named too, and then it is not found.
//!
//! The log is used for this, and not a column of each row, because every version of a host writes
//! it, also the former one during an upgrade.

use crate::artifact::PolicyRef;
use std::collections::BTreeSet;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    pub policies: BTreeSet<PolicyRef>,
    pub experiments: BTreeSet<String>,
    pub cohorts: BTreeSet<String>,
    pub activations: bool,
    pub stages: bool,
    /// Quarantines, withdrawals and lifts.
    pub quarantines: bool,
    pub flags: bool,
}

impl Touched {
    /// Adds what an audit entry with this action and subject changed. Returns false if this is not
    /// known, because a newer host wrote it; then the whole registry must be read.
    #[must_use]
    pub fn add(&mut self, action: &str, subject: &str) -> bool {
        match action {
            "publish" => match subject.parse() {
                Ok(policy) => drop(self.policies.insert(policy)),
                Err(_) => return false,
            },
            "activate" | "rollback" => {
                self.activations = true;
                self.stages = true;
            }
            "shadow" | "canary" | "retire" => self.stages = true,
            "quarantine" => {
                self.quarantines = true;
                self.stages = true;
            }
            "withdraw" | "lift" => self.quarantines = true,
            "put_experiment" => drop(self.experiments.insert(subject.to_owned())),
            "put_cohort" => drop(self.cohorts.insert(subject.to_owned())),
            "set_flag" => self.flags = true,
            "dropped" => {}
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_action_asks_for_the_whole_registry() {
        let mut touched = Touched::default();
        assert!(touched.add("publish", "p@1.0.0"));
        assert!(touched.add("dropped", "p@1.0.0"));
        assert!(!touched.add("publish", "not a policy"));
        assert!(!touched.add("rename", "p@1.0.0"));
        assert_eq!(touched.policies.len(), 1);
    }
}
