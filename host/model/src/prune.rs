//! What the registry keeps that nothing uses, and its quotas. Pure: the stored modules and the
//! quotas are passed in.

use crate::artifact::{Digest, PolicyRef, Stage};
use crate::lifecycle::{WARM_POLICIES, rollback_targets};
use crate::registry::RegistryState;
use std::collections::{BTreeMap, BTreeSet};

/// Most versions that one change removes. The audit entry names them.
pub const POLICIES_MAX: usize = 500;
/// Most modules that one change removes.
pub const MODULES_MAX: usize = 500;
/// Bytes of modules that one change removes, except that one module may have more. Other changes
/// wait while a database removes them.
pub const BYTES_MAX: u64 = 256 << 20;

/// A module in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredModule {
    pub digest: Digest,
    pub bytes: u64,
}

/// What one clean-up removes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unused {
    /// `-dev.N` versions that nothing uses.
    pub policies: Vec<PolicyRef>,
    /// Modules without a policy.
    pub modules: Vec<Digest>,
    /// Bytes of these modules.
    pub bytes: u64,
    /// True if there is more than one change removes.
    pub more: bool,
}

impl Unused {
    /// Finds what nothing uses. A version stays if it is active, one of the former policies to
    /// which rollbacks return next, a canary, in shadow, a variation of an experiment in any state,
    /// retired, or in quarantine under its name or digest. The highest `-dev.N` of a version stays
    /// too, so that no number is given twice. Versions that authors published by hand stay in any
    /// case. A removed version leaves the stack of activations.
    pub fn of(state: &RegistryState, stored: &[StoredModule]) -> Self {
        let mut used = used_policies(state);
        used.extend(
            highest_dev_versions(state)
                .into_values()
                .map(|(_, highest)| highest),
        );
        let mut unused = Self::default();
        let mut needed = BTreeSet::new();
        for published in &state.policies {
            let policy = &published.spec.policy;
            let is_kept = !is_dev(policy)
                || used.contains(policy)
                || state.quarantined.contains_key(&published.digest)
                || state.withdrawals.contains_key(&published.digest);
            if is_kept || unused.policies.len() == POLICIES_MAX {
                unused.more |= !is_kept;
                needed.extend(modules_of(&published.spec));
            } else {
                unused.policies.push(policy.clone());
            }
        }
        for module in stored.iter().filter(|m| !needed.contains(&m.digest)) {
            let is_full = unused.modules.len() == MODULES_MAX
                || !unused.modules.is_empty() && unused.bytes + module.bytes > BYTES_MAX;
            if is_full {
                unused.more = true;
                break;
            }
            unused.modules.push(module.digest);
            unused.bytes += module.bytes;
        }
        unused
    }

    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.modules.is_empty()
    }
}

fn used_policies(state: &RegistryState) -> BTreeSet<&PolicyRef> {
    let experiments = state.experiments.values();
    let variations = experiments.flat_map(|experiment| &experiment.spec.variations);
    let quarantined = state.quarantined.values();
    let withdrawn = state.withdrawals.values().flat_map(BTreeMap::values);
    state
        .activations
        .last()
        .into_iter()
        .chain(rollback_targets(state).take(WARM_POLICIES))
        .chain(state.canary.iter().map(|canary| &canary.policy))
        .chain(&state.shadows)
        .chain(&state.retired)
        .chain(variations.map(|variation| &variation.policy))
        .chain(quarantined.map(|quarantine| &quarantine.policy))
        .chain(withdrawn.map(|withdrawal| &withdrawal.policy))
        .collect()
}

fn modules_of(spec: &crate::artifact::PolicySpec) -> impl Iterator<Item = Digest> {
    let modules = Stage::ALL.map(|stage| spec.stages.get(stage).module);
    modules.into_iter().chain(spec.signature)
}

/// Returns true for a version `…-dev.N`, which a development host publishes by itself.
pub fn is_dev(policy: &PolicyRef) -> bool {
    let number = policy.version.pre.as_str().strip_prefix("dev.");
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Returns the number `N` of a version `…-dev.N`.
fn dev_number(policy: &PolicyRef) -> Option<u64> {
    is_dev(policy).then(|| policy.version.pre.as_str()["dev.".len()..].parse().ok())?
}

/// A version without its `-dev.N`, with the policy's name.
fn base_of(policy: &PolicyRef) -> (&str, [u64; 3], &str) {
    let PolicyRef { name, version } = policy;
    let numbers = [version.major, version.minor, version.patch];
    (name, numbers, version.build.as_str())
}

type Highest<'a> = BTreeMap<(&'a str, [u64; 3], &'a str), (u64, &'a PolicyRef)>;

/// Returns the highest `-dev.N` of each version.
fn highest_dev_versions(state: &RegistryState) -> Highest<'_> {
    let mut highest = Highest::new();
    for published in &state.policies {
        let policy = &published.spec.policy;
        let Some(number) = dev_number(policy) else {
            continue;
        };
        let known = highest.entry(base_of(policy)).or_insert((number, policy));
        if number > known.0 {
            *known = (number, policy);
        }
    }
    highest
}

/// Returns the `-dev.N` version after the highest one of this policy's version. Returns `None` if
/// the version cannot carry such a suffix.
pub fn next_dev_version(state: &RegistryState, policy: &PolicyRef) -> Option<semver::Version> {
    let same_base =
        |(number, known): (u64, &PolicyRef)| (base_of(known) == base_of(policy)).then_some(number);
    let highest = highest_dev_versions(state)
        .into_values()
        .find_map(same_base);
    let number = highest.unwrap_or(0).checked_add(1)?;
    Some(semver::Version {
        pre: semver::Prerelease::new(&format!("dev.{number}")).ok()?,
        ..policy.version.clone()
    })
}

/// Limits of what the registry keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    pub versions_max: usize,
    pub dev_versions_max: usize,
    pub modules_bytes_max: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            versions_max: 10_000,
            dev_versions_max: 1_000,
            modules_bytes_max: 8 << 30,
        }
    }
}

impl Quotas {
    /// Reports if there is no room for another `-dev.N` version.
    pub fn is_dev_full(&self, state: &RegistryState) -> bool {
        let dev = state.policies.iter().filter(|p| is_dev(&p.spec.policy));
        dev.count() >= self.dev_versions_max
    }

    /// Returns the reason why another version does not fit, with what to do. `new_modules` are the
    /// modules of that version.
    pub fn refusal(
        &self,
        state: &RegistryState,
        policy: &PolicyRef,
        stored: &[StoredModule],
        new_modules: &[StoredModule],
    ) -> Option<String> {
        let versions = state.policies.len();
        if versions >= self.versions_max {
            return Some(format!(
                "the registry has {versions} versions, and policy.versions_max is {}; remove unused ones with nova policy prune, or raise the limit",
                self.versions_max
            ));
        }
        if is_dev(policy) && self.is_dev_full(state) {
            return Some(format!(
                "the registry has {} -dev.N versions, which is policy.dev_versions_max; remove unused ones with nova policy prune, or raise the limit",
                self.dev_versions_max
            ));
        }
        let known: BTreeSet<Digest> = stored.iter().map(|module| module.digest).collect();
        let new = new_modules.iter().filter(|m| !known.contains(&m.digest));
        let new: u64 = new.map(|module| module.bytes).sum();
        let bytes: u64 = stored.iter().map(|module| module.bytes).sum();
        (new > 0 && bytes + new > self.modules_bytes_max).then(|| {
            format!(
                "the registry's modules have {bytes} bytes, this policy adds {new}, and policy.modules_bytes_max is {}; remove unused ones with nova policy prune, or raise the limit",
                self.modules_bytes_max
            )
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::quarantine::Quarantine;
    use crate::registry::{Canary, Experiment, PublishedPolicy};
    use serde_json::json;

    fn policy(name: &str) -> PolicyRef {
        name.parse().unwrap()
    }

    fn module(name: &str) -> Digest {
        Digest::from_content(name.as_bytes())
    }

    /// A policy with a module of its own.
    fn published(name: &str) -> PublishedPolicy {
        let stage = json!({"module": module(name), "params": {}});
        let spec = json!({
            "policy": name, "description": "",
            "stages": {"dedup": stage, "score": stage, "saturation": stage},
            "limits": {"deadline_ms": 20, "memory_mb": 16, "instance": "fresh"},
        });
        PublishedPolicy {
            spec: serde_json::from_value(spec).unwrap(),
            digest: Digest::from_content(format!("digest of {name}").as_bytes()),
            published_at_ms: 1,
        }
    }

    fn stored(names: &[&str]) -> Vec<StoredModule> {
        let stored = |name: &&str| StoredModule {
            digest: module(name),
            bytes: 10,
        };
        names.iter().map(stored).collect()
    }

    #[test]
    fn only_dev_versions_that_nothing_uses_and_modules_without_a_policy_are_removed() {
        let names = [
            "q@1.0.0",
            "p@1.0.0",
            "p@1.0.0-beta",
            "p@1.0.0-dev.1",
            "p@1.0.0-dev.2",
            "p@1.0.0-dev.3",
            "p@1.0.0-dev.4",
            "p@1.0.0-dev.5",
            "p@1.0.0-dev.6",
            "p@1.0.0-dev.7",
            "p@1.0.0-dev.8",
            "p@1.0.0-dev.9",
        ];
        let mut state = RegistryState {
            policies: names.iter().map(|name| published(name)).collect(),
            activations: [
                "p@1.0.0-dev.1",
                "p@1.0.0-dev.2",
                "p@1.0.0-beta",
                "q@1.0.0",
                "p@1.0.0",
            ]
            .map(policy)
            .to_vec(),
            canary: Some(Canary {
                policy: policy("p@1.0.0-dev.3"),
                percent: 1.0,
            }),
            ..RegistryState::default()
        };
        state.shadows.insert(policy("p@1.0.0-dev.4"));
        state.retired.insert(policy("p@1.0.0-dev.5"));
        let experiment = json!({"spec": {"variations": [{"key": "a", "weight": 1.0, "policy": "p@1.0.0-dev.6"}]}, "state": "stopped"});
        let experiment: Experiment = serde_json::from_value(experiment).unwrap();
        state.experiments.insert("e".into(), experiment);
        let quarantine = Quarantine {
            policy: policy("p@1.0.0-dev.7"),
            reason: "bad".into(),
            by: "ada".into(),
            at_ms: 1,
        };
        let digest = published("p@1.0.0-dev.8").digest;
        state.quarantined.insert(digest, quarantine);
        let mut all = names.to_vec();
        all.push("left over");
        let unused = Unused::of(&state, &stored(&all));
        assert_eq!(unused.policies, [policy("p@1.0.0-dev.1")]);
        assert_eq!(
            unused.modules,
            [module("p@1.0.0-dev.1"), module("left over")]
        );
        assert_eq!((unused.bytes, unused.more), (20, false));
        let change = crate::registry::Change::Prune {
            policies: unused.policies,
            modules: unused.modules,
        };
        state.apply(&change);
        let stack = ["p@1.0.0-dev.2", "p@1.0.0-beta", "q@1.0.0", "p@1.0.0"];
        assert_eq!(state.activations, stack.map(policy));
    }

    #[test]
    fn a_number_of_a_removed_dev_version_is_not_given_again() {
        let names = [
            "p@1.0.0",
            "p@1.0.0-dev.8",
            "p@1.0.0-dev.9",
            "p@1.0.0-dev.10",
            "p@2.0.0-dev.1",
            "a@1.0.0",
            "b@1.0.0",
            "c@1.0.0",
            "d@1.0.0",
        ];
        let mut state = RegistryState {
            policies: names.iter().map(|name| published(name)).collect(),
            activations: names.map(policy).to_vec(),
            ..RegistryState::default()
        };
        let unused = Unused::of(&state, &[]);
        assert_eq!(
            unused.policies,
            ["p@1.0.0-dev.8", "p@1.0.0-dev.9"].map(policy)
        );
        state.replace_policies(&unused.policies.into_iter().collect(), []);
        let next = |name| next_dev_version(&state, &policy(name)).map(|v| v.to_string());
        assert_eq!(next("p@1.0.0").as_deref(), Some("1.0.0-dev.11"));
        assert_eq!(next("p@2.0.0").as_deref(), Some("2.0.0-dev.2"));
        assert_eq!(next("p@3.0.0").as_deref(), Some("3.0.0-dev.1"));
        let last = format!("p@1.0.0-dev.{}", u64::MAX);
        state.policies.push(published(&last));
        assert_eq!(next_dev_version(&state, &policy("p@1.0.0")), None);
    }

    #[test]
    fn one_clean_up_is_bounded_and_says_that_there_is_more() {
        let names: Vec<String> = (1..=POLICIES_MAX + 7)
            .map(|n| format!("p@1.0.0-dev.{n}"))
            .collect();
        let mut state = RegistryState {
            policies: names.iter().map(|name| published(name)).collect(),
            ..RegistryState::default()
        };
        let unused = Unused::of(&state, &[]);
        assert_eq!((unused.policies.len(), unused.more), (POLICIES_MAX, true));
        let removed: BTreeSet<PolicyRef> = unused.policies.into_iter().collect();
        state.replace_policies(&removed, []);
        let rest = Unused::of(&state, &[]);
        // The highest one stays.
        assert_eq!((rest.policies.len(), rest.more), (6, false));
        let large = [1_u8, 2, 3].map(|n| StoredModule {
            digest: Digest::from_content(&[n]),
            bytes: BYTES_MAX / 2,
        });
        let unused = Unused::of(&RegistryState::default(), &large);
        assert_eq!((unused.modules.len(), unused.more), (2, true));
    }

    #[test]
    fn a_quota_refuses_what_does_not_fit_and_says_what_to_do() {
        let state = RegistryState {
            policies: vec![published("p@1.0.0"), published("p@1.0.1-dev.1")],
            ..RegistryState::default()
        };
        let (old, new) = (stored(&["a", "b"]), stored(&["b", "c"]));
        let fits = Quotas {
            versions_max: 3,
            dev_versions_max: 2,
            modules_bytes_max: 30,
        };
        let (plain, dev) = (policy("q@1.0.0"), policy("q@1.0.0-dev.9"));
        let refusal = |quotas: Quotas, policy| quotas.refusal(&state, policy, &old, &new);
        assert_eq!(refusal(fits, &plain), None);
        assert_eq!(refusal(fits, &dev), None);
        let few = Quotas {
            versions_max: 2,
            ..fits
        };
        assert!(refusal(few, &plain).unwrap().contains("versions_max"));
        let no_dev = Quotas {
            dev_versions_max: 1,
            ..fits
        };
        assert_eq!(refusal(no_dev, &plain), None);
        assert!(refusal(no_dev, &dev).unwrap().contains("prune"));
        let small = Quotas {
            modules_bytes_max: 29,
            ..fits
        };
        assert!(refusal(small, &plain).unwrap().contains("adds 10"));
    }
}
