//! The failures of policies on one host, for their authors: how often each kind occurred, when,
//! and the text of the latest one. Everything is bounded, and nothing names a viewer.

use super::artifact::{PolicyRef, Stage};
use super::failure::{FailureKind, PolicyFailure};
use super::time::UnixMs;
use std::collections::{BTreeMap, HashMap};

/// Maximum number of policies. The one whose latest failure is the oldest is forgotten first.
pub const POLICIES_MAX: usize = 256;
/// Maximum length of the text of a failure, in bytes. A trap's text has the names of the functions
/// that led to it.
pub const TEXT_BYTES_MAX: usize = 2_048;

/// Failures of one kind in one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    pub stage: Stage,
    pub kind: FailureKind,
    pub count: u64,
    pub first_ms: UnixMs,
    pub last_ms: UnixMs,
    /// Text of the latest failure.
    pub text: String,
}

#[derive(Debug, Default)]
pub struct FailureLog {
    by_policy: HashMap<PolicyRef, BTreeMap<(usize, usize), Failures>>,
}

impl FailureLog {
    pub fn record(&mut self, policy: &PolicyRef, failure: &PolicyFailure, now_ms: UnixMs) {
        if !self.by_policy.contains_key(policy) {
            self.make_room();
        }
        let of_policy = self.by_policy.entry(policy.clone()).or_default();
        let key = (failure.stage as usize, failure.kind as usize);
        let failures = of_policy.entry(key).or_insert_with(|| Failures {
            stage: failure.stage,
            kind: failure.kind,
            count: 0,
            first_ms: now_ms,
            last_ms: now_ms,
            text: String::new(),
        });
        failures.count += 1;
        failures.last_ms = now_ms;
        shortened(&failure.detail).clone_into(&mut failures.text);
    }

    /// Returns the failures of a policy, by stage and kind.
    pub fn of(&self, policy: &PolicyRef) -> Vec<Failures> {
        let of_policy = self.by_policy.get(policy);
        of_policy.map_or_else(Vec::new, |failures| failures.values().cloned().collect())
    }

    fn make_room(&mut self) {
        if self.by_policy.len() < POLICIES_MAX {
            return;
        }
        let last_ms = |failures: &BTreeMap<_, Failures>| failures.values().map(|f| f.last_ms).max();
        let by_policy = self.by_policy.iter();
        let oldest = by_policy.min_by_key(|(_, failures)| last_ms(failures));
        if let Some(oldest) = oldest.map(|(policy, _)| policy.clone()) {
            self.by_policy.remove(&oldest);
        }
    }
}

/// Returns the beginning of a text, at most [`TEXT_BYTES_MAX`] long.
fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(n: usize) -> PolicyRef {
        PolicyRef {
            name: "p".into(),
            version: semver::Version::new(1, 0, n as u64),
        }
    }

    fn failure(kind: FailureKind, detail: &str) -> PolicyFailure {
        PolicyFailure::new(Stage::Score, kind, detail)
    }

    #[test]
    fn failures_are_counted_by_kind_with_their_times_and_the_latest_text() {
        let mut log = FailureLog::default();
        for (at_ms, kind, detail) in [
            (1, FailureKind::Trap, "first"),
            (2, FailureKind::Memory, "other"),
            (3, FailureKind::Trap, "second"),
        ] {
            log.record(&policy(1), &failure(kind, detail), at_ms);
        }
        let found = log.of(&policy(1));
        let trap = Failures {
            stage: Stage::Score,
            kind: FailureKind::Trap,
            count: 2,
            first_ms: 1,
            last_ms: 3,
            text: "second".into(),
        };
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], trap);
        assert!(log.of(&policy(2)).is_empty());
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_the_oldest_policy_is_forgotten() {
        let mut log = FailureLog::default();
        let long = "é".repeat(TEXT_BYTES_MAX);
        for n in 0..2 * POLICIES_MAX {
            log.record(&policy(n), &failure(FailureKind::Trap, &long), n as u64);
        }
        assert_eq!(log.by_policy.len(), POLICIES_MAX);
        assert!(log.of(&policy(POLICIES_MAX - 1)).is_empty());
        let newest = log.of(&policy(2 * POLICIES_MAX - 1));
        assert_eq!(newest[0].text.len(), TEXT_BYTES_MAX);
    }
}
