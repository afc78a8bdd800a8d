//! Tests of the withdrawals of one host and of the agreement of several.

use super::*;
use crate::artifact::{PolicySpec, baseline};
use crate::lifecycle::{Event, PolicyState, Refused, digests_to_lift, state_of, step};
use crate::quarantine::Lift;
use crate::registry::PublishedPolicy;
use proptest::prelude::*;
use serde_json::json;

const GOOD: &str = "good@1.0.0";
const BAD: &str = "bad@1.0.0";

fn reference(name: &str) -> PolicyRef {
    name.parse().unwrap()
}

fn publish(name: &str) -> PublishedPolicy {
    let stage = json!({"module": Digest::from_content(name.as_bytes()), "params": {}});
    let spec = json!({
        "policy": name, "description": "",
        "stages": {"dedup": stage, "score": stage, "saturation": stage},
        "limits": {"deadline_ms": 20, "memory_mb": 16, "instance": "fresh"},
    });
    let spec: PolicySpec = serde_json::from_value(spec).unwrap();
    PublishedPolicy {
        digest: spec.digest(),
        spec,
        published_at_ms: 0,
    }
}

/// The baseline, then `good`, then `bad` were activated.
fn state() -> RegistryState {
    let names = [&baseline().to_string(), GOOD, BAD].map(ToString::to_string);
    RegistryState {
        revision: 10,
        policies: names.iter().map(|name| publish(name)).collect(),
        activations: names.iter().map(|name| reference(name)).collect(),
        ..RegistryState::default()
    }
}

fn digest(name: &str) -> Digest {
    publish(name).digest
}

fn own(name: &str) -> OwnWithdrawal {
    OwnWithdrawal {
        digest: digest(name),
        policy: reference(name),
        reason: "5 of 5".into(),
        at_ms: 1,
        base_revision: 10,
    }
}

/// Applies a change as a registry does.
fn recorded(state: &mut RegistryState, change: &Change) {
    state.apply(change);
    state.revision += 1;
}

/// Reports a withdrawal and completes what follows from it.
fn report(state: &mut RegistryState, host: &str, name: &str, is_only_host: bool) {
    let change = own(name).report(host, is_only_host, state);
    recorded(state, &change.unwrap());
    complete_quarantines(state);
}

fn lift(name: &str, base_revision: i64) -> Change {
    Change::Lift {
        digest: digest(name),
        lift: Lift {
            policy: reference(name),
            reason: "a bad disk".into(),
            by: "ada".into(),
            at_ms: 2,
            base_revision,
        },
    }
}

fn active(state: &RegistryState) -> String {
    state.activations.last().unwrap().to_string()
}

#[test]
fn one_host_takes_a_policy_out_of_its_own_service_only() {
    let mut shared = state();
    report(&mut shared, "a", BAD, false);
    assert_eq!(active(&shared), BAD);
    assert!(shared.quarantined.is_empty());
    let here = served_state(&shared, &withdrawn_on("a", &[], &shared));
    assert_eq!(active(&here), GOOD);
    let elsewhere = served_state(&shared, &withdrawn_on("b", &[], &shared));
    assert_eq!(active(&elsewhere), BAD);
}

#[test]
fn a_second_host_or_an_only_host_makes_it_a_quarantine_with_the_rollback() {
    for hosts in [&[("a", false), ("b", false)][..], &[("a", true)]] {
        let mut shared = state();
        for (host, is_only_host) in hosts {
            report(&mut shared, host, BAD, *is_only_host);
        }
        assert!(shared.quarantined.contains_key(&digest(BAD)), "{hosts:?}");
        assert_eq!(active(&shared), GOOD);
    }
    let mut shared = state();
    report(&mut shared, "a", BAD, false);
    report(&mut shared, "b", BAD, false);
    let reason = &shared.quarantined[&digest(BAD)].reason;
    assert_eq!(reason, "2 hosts agree: 5 of 5");
}

#[test]
fn the_bundled_baseline_is_never_quarantined_by_hosts() {
    let baseline = baseline().to_string();
    let mut shared = state();
    for host in ["a", "b", "c"] {
        for name in [BAD, GOOD, &baseline] {
            if let Some(change) = own(name).report(host, true, &shared) {
                recorded(&mut shared, &change);
                complete_quarantines(&mut shared);
            }
        }
    }
    assert_eq!(shared.quarantined.len(), 2);
    assert_eq!(active(&shared), baseline);
    let here = withdrawn_on("a", &[], &shared);
    assert!(here.contains_key(&digest(&baseline)), "on this host only");
    assert!(withdrawn_on("d", &[], &shared).is_empty());
}

#[test]
fn a_withdrawal_that_is_not_reported_yet_holds_on_its_host() {
    let shared = state();
    let withdrawn = withdrawn_on("a", &[own(BAD)], &shared);
    assert_eq!(active(&served_state(&shared, &withdrawn)), GOOD);
}

#[test]
fn a_lift_ends_what_was_decided_before_it_and_nothing_later() {
    let mut shared = state();
    report(&mut shared, "a", BAD, false);
    report(&mut shared, "b", BAD, false);
    let revision = shared.revision;
    recorded(&mut shared, &lift(BAD, revision));
    assert!(complete_quarantines(&mut shared).is_empty());
    assert!(shared.quarantined.is_empty() && shared.withdrawals.is_empty());
    assert!(own(BAD).is_settled(&shared));
    assert!(own(BAD).report("a", false, &shared).is_none());
    assert!(withdrawn_on("a", &[own(BAD)], &shared).is_empty());
    let again = OwnWithdrawal {
        base_revision: shared.revision,
        ..own(BAD)
    };
    assert!(!again.is_settled(&shared));
    assert!(again.report("a", false, &shared).is_some());
}

#[test]
fn a_registry_that_lost_a_withdrawal_gets_it_again() {
    let mut shared = state();
    report(&mut shared, "a", BAD, false);
    assert!(own(BAD).report("a", false, &shared).is_none());
    // As after the registry was restored from a backup.
    assert!(own(BAD).report("a", false, &state()).is_some());
}

#[test]
fn a_policy_that_a_host_withdrew_is_neither_activated_nor_canaried_but_rolled_back_to() {
    let mut shared = state();
    report(&mut shared, "a", GOOD, false);
    shared.activations = vec![baseline()];
    let activate = Event::Activate(reference(GOOD));
    let canary = Event::Canary {
        policy: reference(GOOD),
        percent: 5.0,
    };
    for event in [activate, canary] {
        let refused = step(&shared, &event).unwrap_err().to_string();
        assert!(
            refused.contains("host a") && refused.contains("nova policy lift"),
            "{refused}"
        );
    }
    let mut shared = state();
    report(&mut shared, "a", GOOD, false);
    let rollback = Event::Rollback {
        reason: "x".into(),
        expected_active: None,
    };
    assert_eq!(active(&step(&shared, &rollback).unwrap().0), GOOD);
}

#[test]
fn a_lift_names_every_digest_of_the_policy_and_is_refused_if_there_is_none() {
    let mut shared = state();
    let refused = digests_to_lift(&shared, &reference(BAD)).unwrap_err();
    assert!(matches!(refused, Refused::Conflict(_)), "{refused}");
    let unknown = digests_to_lift(&shared, &reference("unknown@1.0.0"));
    assert!(matches!(unknown, Err(Refused::Unknown(_))));
    report(&mut shared, "a", BAD, true);
    // A variation of the same policy, with other parameters.
    let variation = Digest::from_content(b"variation");
    let change = OwnWithdrawal {
        digest: variation,
        ..own(BAD)
    };
    let change = change.report("b", false, &shared).unwrap();
    recorded(&mut shared, &change);
    let mut digests = digests_to_lift(&shared, &reference(BAD)).unwrap();
    digests.sort_unstable();
    let mut expected = vec![digest(BAD), variation];
    expected.sort_unstable();
    assert_eq!(digests, expected);
    assert_eq!(
        state_of(&shared, &reference(BAD)),
        Some(PolicyState::Quarantined)
    );
}

/// A report of a host about a policy, or a lift of a policy.
fn acts() -> impl Strategy<Value = Vec<(Option<u8>, bool, usize)>> {
    let act = (
        proptest::option::weighted(0.8, 0..3u8),
        any::<bool>(),
        0..3usize,
    );
    proptest::collection::vec(act, 0..30)
}

proptest! {
    #[test]
    fn every_host_completes_the_same_quarantines_and_no_quarantine_lacks_agreement(acts in acts()) {
        let names = [baseline().to_string(), GOOD.to_owned(), BAD.to_owned()];
        let mut shared = state();
        for (host, is_only_host, policy) in acts {
            let name = &names[policy];
            match host {
                Some(host) => {
                    let own = OwnWithdrawal { base_revision: shared.revision, ..own(name) };
                    if let Some(change) = own.report(&host.to_string(), is_only_host, &shared) {
                        recorded(&mut shared, &change);
                    }
                }
                None => {
                    let revision = shared.revision;
                    recorded(&mut shared, &lift(name, revision));
                }
            }
            let mut elsewhere = shared.clone();
            let changes = complete_quarantines(&mut shared);
            complete_quarantines(&mut elsewhere);
            prop_assert_eq!(&shared, &elsewhere);
            prop_assert!(complete_quarantines(&mut elsewhere).is_empty(), "{:?}", changes);
            for digest in shared.quarantined.keys() {
                let by_host = &shared.withdrawals[digest];
                prop_assert!(by_host.len() >= 2 || by_host.values().any(|w| w.is_only_host));
            }
            prop_assert!(!shared.quarantined.contains_key(&digest(&names[0])));
        }
    }
}
