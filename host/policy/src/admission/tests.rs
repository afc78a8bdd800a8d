//! Tests of admission through its public interface: files in, a verdict out.

use super::golden::{CANDIDATES_MAX, OVERSIZE};
use super::*;
use crate::admission::module_source::lacks_memory;
use crate::builtin;
use std::collections::BTreeMap;

/// Returns a component built from `tests/guests`.
fn guest(name: &str) -> Vec<u8> {
    let path = concat!(env!("NOVA_COMPONENTS_DIR"), "/guests/");
    std::fs::read(format!("{path}{name}.wasm")).unwrap()
}

/// Returns a policy with this scorer, its parameters and its limits.
fn with_scorer(bytes: Vec<u8>, params: &str, limits: &str) -> PolicyFiles {
    PolicyFiles {
        manifest: format!(
            "name = \"tried\"\nversion = \"1.0.0\"\n\
             [dedup]\nmodule = \"builtin:seen-dedup\"\n\
             [score]\nmodule = \"scorer.wasm\"\nparams = {{ {params} }}\n\
             [saturation]\nmodule = \"builtin:author-saturation\"\n\
             [limits]\n{limits}\n"
        ),
        modules: BTreeMap::from([("scorer.wasm".to_owned(), bytes)]),
    }
}

/// Returns a policy whose scorer misbehaves. The value of its other parameter does not matter.
fn misbehaving(how: u32) -> PolicyFiles {
    let bytes = guest("misbehaves_as_told");
    with_scorer(bytes, &format!("how = {how}"), "memory_mb = 8")
}

fn refused(files: &PolicyFiles) -> Vec<Reason> {
    let engine = Engine::start().unwrap();
    admit(&engine, &NothingKnown, files).unwrap_err().reasons
}

fn codes(reasons: &[Reason]) -> Vec<&str> {
    reasons.iter().map(|reason| &*reason.code).collect()
}

#[test]
fn the_bundled_policies_are_admitted_and_their_cost_is_recorded() {
    let engine = Engine::start().unwrap();
    for files in builtin::recipes() {
        let admitted = admit(&engine, &NothingKnown, &files).unwrap();
        let record = admitted.record.unwrap();
        assert!(
            record.fuel > 0 && record.fuel < record.fuel_allowed / 2,
            "{record:?}"
        );
        for stage in Stage::ALL {
            let stage = record.stage(stage);
            assert_eq!(stage.class, "standard");
            assert!(stage.fuel_at(OVERSIZE) > stage.fuel_at(CANDIDATES_MAX));
            assert!(stage.memory_bytes > 0 && stage.module_bytes > 0);
            assert!((0.5..2.5).contains(&stage.growth), "{stage:?}");
        }
    }
}

#[test]
fn the_recorded_fuel_is_the_same_every_time() {
    let engine = Engine::start().unwrap();
    let files = builtin::recipes().next().unwrap();
    let fuel = || {
        let record = admit(&engine, &NothingKnown, &files)
            .unwrap()
            .record
            .unwrap();
        Stage::ALL.map(|stage| record.stage(stage).fuel.clone())
    };
    assert_eq!(fuel(), fuel());
}

#[test]
fn every_misbehaviour_is_found_at_admission_and_has_its_own_code() {
    let ways = [
        (1, "trap"),
        (2, "deadline"),
        (3, "memory"),
        (4, "contract_length"),
        (5, "contract_nonfinite"),
        (6, "not_repeatable"),
        (7, "deadline"),
        (8, "trap"),
    ];
    for (how, code) in ways {
        let reasons = refused(&misbehaving(how));
        let found = reasons.iter().find(|reason| reason.code == code);
        let found = found.unwrap_or_else(|| panic!("{how}: {reasons:?}"));
        assert!(
            code == "deadline" || found.stage == Some(Stage::Score),
            "{found:?}"
        );
    }
}

#[test]
fn a_breach_on_one_golden_set_names_only_that_set() {
    let reasons = refused(&misbehaving(8));
    let sets = &reasons[0].message;
    assert!(sets.contains("(golden sets: zeros)"), "{sets}");
}

#[test]
fn a_range_end_that_breaks_the_contract_is_reported_with_its_parameter() {
    let reasons = refused(&misbehaving(0));
    assert_eq!(codes(&reasons), ["parameter_range"]);
    let message = &reasons[0].message;
    assert!(
        message.contains("score.params.divisor = 0") && message.contains("minimum"),
        "{message}"
    );
}

#[test]
fn a_module_of_another_abi_is_refused_with_both_versions() {
    let bytes = builtin::module("weighted-scorer").unwrap();
    let (ours, theirs) = (b"nova:policy/score@1.0.0", b"nova:policy/score@2.0.0");
    let mut other = bytes.to_vec();
    for at in 0..bytes.len() - ours.len() {
        if bytes[at..].starts_with(ours) {
            other[at..at + ours.len()].copy_from_slice(theirs);
        }
    }
    let reasons = refused(&with_scorer(other, "", ""));
    assert_eq!(codes(&reasons), ["abi_version"]);
    let message = &reasons[0].message;
    for version in ["nova:policy/score@2.0.0", "nova:policy/score@1.0.0"] {
        assert!(message.contains(version), "{message}");
    }
}

#[test]
fn a_policy_that_uses_too_much_fuel_learns_the_deadline_that_would_be_enough() {
    let record = |fuel, time_us| Record {
        fuel,
        fuel_allowed: 2 * FUEL_PER_MS,
        stages: PerStage {
            score: StageRecord {
                time_us,
                ..StageRecord::default()
            },
            ..PerStage::default()
        },
    };
    let missed = misses_deadline(&record(5 * FUEL_PER_MS, 0), 2).unwrap();
    assert!(missed.message.contains("raise it to 5"), "{missed}");
    assert_eq!(misses_deadline(&record(2 * FUEL_PER_MS, 4_000), 2), None);
    let missed = misses_deadline(&record(FUEL_PER_MS, 4_001), 2).unwrap();
    assert!(missed.message.contains("took 5 ms"), "{missed}");
}

#[test]
fn a_stage_that_passed_is_tried_again_only_with_other_values() {
    let engine = Engine::start().unwrap();
    let admit = |params: &str| {
        let bytes = builtin::module("weighted-scorer").unwrap().to_vec();
        admit(&engine, &NothingKnown, &with_scorer(bytes, params, "")).unwrap();
        engine.trials.run_pending_tasks();
        engine.trials.entry_count()
    };
    assert_eq!(admit(""), 3);
    assert_eq!(admit(""), 3);
    assert_eq!(admit("w_freshness = 0.5"), 4);
}

#[test]
fn a_module_that_starts_with_too_much_memory_learns_the_limit_to_set() {
    let bytes = builtin::module("weighted-scorer").unwrap().to_vec();
    let module = Engine::start().unwrap().load(&bytes).unwrap();
    let reason = lacks_memory(Stage::Score, &module, 0).unwrap();
    assert!(reason.message.contains("set memory_mb = "), "{reason}");
    assert_eq!(lacks_memory(Stage::Score, &module, 16), None);
}

#[test]
fn all_stages_are_tried_and_every_reason_is_given_at_once() {
    let mut files = misbehaving(5);
    files.manifest = files
        .manifest
        .replace("builtin:seen-dedup", "absent.wasm")
        .replace("memory_mb = 8", "deadline_ms = 0\nmemory_mb = 8");
    let reasons = refused(&files);
    for code in ["limits", "module_missing", "contract_nonfinite"] {
        assert!(codes(&reasons).contains(&code), "{code}: {reasons:?}");
    }
}

#[test]
fn equal_behaviour_is_not_tried_twice() {
    struct Tried;
    impl KnownModules for Tried {
        fn compiled(&self, _digest: Digest) -> Option<Arc<Module>> {
            None
        }
        fn bytes(&self, _digest: Digest) -> Option<Vec<u8>> {
            None
        }
        fn is_tried(&self, _policy: Digest) -> bool {
            true
        }
    }
    let engine = Engine::start().unwrap();
    let admitted = admit(&engine, &Tried, &misbehaving(5)).unwrap();
    assert_eq!(admitted.record, None);
}
