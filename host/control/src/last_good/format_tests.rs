//! A stored `registry/state.json`, in `tests/fixtures/formats`: the state of a registry in which
//! every kind of change was made.

use super::*;
use crate::testing::Fleet;
use nova_model::artifact::{InstanceMode, Limits, PolicySpec};
use nova_model::experiments::spec::{ExperimentSpec, Namespace, StageOverrides, VariationSpec};
use nova_model::quarantine::{Lift, Quarantine, Withdrawal};
use nova_model::registry::{Canary, Experiment, PublishedPolicy};
use serde_json::json;
use std::collections::BTreeMap;

const STORED: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/formats/v1/registry/state.json"
));
/// The same state with the hash of its audit entry, which later versions write.
const STORED_WITH_HEAD: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/formats/v1/registry/state_head.json"
));
const HEAD: &str = "3f1aa465c58c67f293d95f3f689bb810b151a29583f091ad9652dbd7b2965472";
/// A state with the fields that were added after the first file.
const STORED_WITH_WITHDRAWALS: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/fixtures/formats/v1/registry/state_withdrawals.json"
));
const QUARANTINED: &str = "bdc43cd69ed5cab1fbc806e62a3e8f6e743e604f54d879ddb3eb3655219a3b37";

/// Publications: policy, digest and time in ms after the first.
const POLICIES: [(&str, &str, u64); 7] = [
    (
        "baseline@1.0.0",
        "f451ea304c040a11f8731cf6dde5a252853a36c8ca6ce16f0c235ad7781f3ab9",
        0,
    ),
    (
        "timeline@1.0.0",
        "0091f5d6ce8753cabfe47caa0ddd0c7eb67c5042f17a8d5354b826051113af1a",
        48,
    ),
    (
        "decay-diversity@1.0.0",
        "b4954c48a80eff668fc0f83d2a0c881e20018ecbbebea9b7ee83ebee323fa48d",
        141,
    ),
    (
        "baseline@1.1.0",
        "6927e9da53a9aacd22158387d479221f4088de7ca63506260486b51ef40597ea",
        472,
    ),
    (
        "baseline@1.2.0",
        "03ba70a1ab31c9014f03faaab05d0144ca706dd72dd374fa4bcd275e05169a83",
        537,
    ),
    (
        "baseline@1.3.0",
        "8c96bb2f09c61909ed366ad9c539c183ab7dadc1fdaf7eb37884f4d6296257aa",
        600,
    ),
    ("baseline@1.4.0", QUARANTINED, 723),
];

fn policy(text: &str) -> PolicyRef {
    text.parse().unwrap()
}

/// A digest covers the modules, the parameters and the limits, so it stands for them.
fn assert_policies(found: &[PublishedPolicy]) {
    assert_eq!(found.len(), POLICIES.len());
    for (published, (name, digest, after_ms)) in found.iter().zip(POLICIES) {
        assert_eq!(published.spec.policy, policy(name));
        assert_eq!(published.digest.to_string(), digest);
        assert_eq!(published.spec.digest(), published.digest);
        assert_eq!(published.published_at_ms, 1_796_054_148_394 + after_ms);
    }
    let PolicySpec {
        description,
        stages,
        limits,
        signature,
        ..
    } = &found[4].spec;
    assert!(description.starts_with("Freshness, engagement and affinity"));
    assert_eq!(stages.score.params["w_freshness"], 0.7);
    assert_eq!(stages.dedup.params["min_results"], 50.0);
    assert_eq!(stages.saturation.params["top_k"], 5.0);
    let expected = Limits {
        deadline_ms: 20,
        memory_mb: 16,
        instance: InstanceMode::Fresh,
    };
    assert_eq!((*limits, *signature), (expected, None));
}

fn variation(key: &str, params: Option<StageOverrides>) -> VariationSpec {
    VariationSpec {
        key: key.into(),
        weight: 0.5,
        policy: policy("baseline@1.0.0"),
        params,
    }
}

fn experiment() -> Experiment {
    let overrides = StageOverrides {
        score: BTreeMap::from([("w_freshness".into(), 0.6)]),
        ..StageOverrides::default()
    };
    Experiment {
        spec: ExperimentSpec {
            description: "does recency help?".into(),
            seed: Some("recency-1".into()),
            hash_version: 2,
            coverage: 0.5,
            cohort: "germans".into(),
            namespace: Some(Namespace {
                id: "n1".into(),
                range: (0.0, 0.5),
            }),
            priority: 3,
            overrides: BTreeMap::from([("42".into(), "fresh".into())]),
            variations: vec![
                variation("control", None),
                variation("fresh", Some(overrides)),
            ],
        },
        state: ExperimentState::Running,
    }
}

fn assert_state(found: &RegistryState) {
    assert_eq!(found.revision, 21);
    assert_policies(&found.policies);
    let active = ["baseline@1.0.0", "timeline@1.0.0", "baseline@1.0.0"].map(policy);
    assert_eq!(found.activations, active);
    let canary = Canary {
        policy: policy("baseline@1.2.0"),
        percent: 12.5,
    };
    assert_eq!(found.canary, Some(canary));
    assert_eq!(found.shadows, BTreeSet::from([policy("baseline@1.1.0")]));
    assert_eq!(found.retired, BTreeSet::from([policy("baseline@1.3.0")]));
    let quarantine = Quarantine {
        policy: policy("baseline@1.4.0"),
        reason: "it shows old posts".into(),
        by: "1".into(),
        at_ms: 1_796_054_149_269,
    };
    let quarantined = BTreeMap::from([(QUARANTINED.parse().unwrap(), quarantine)]);
    assert_eq!(found.quarantined, quarantined);
    let experiments = BTreeMap::from([("recency".to_owned(), experiment())]);
    assert_eq!(found.experiments, experiments);
    let rule = json!({"and": [
        {"attribute": "country", "in": ["DE"]},
        {"or": [{"attribute": "account_age_days", "lt": 4_000.0, "gte": 1.0}, {"ids": [7, 8]}]},
        {"not": {"ids": [9]}},
    ]});
    assert_eq!(json!(found.cohorts), json!({ "germans": rule }));
    let flags = BTreeMap::from([("enable_caching".to_owned(), true)]);
    assert_eq!(found.flags, flags);
    assert!(found.withdrawals.is_empty() && found.lifts.is_empty());
}

fn with_withdrawals() -> RegistryState {
    let withdrawal = Withdrawal {
        policy: policy("baseline@1.4.0"),
        reason: "5 of 62 calls in 30 s failed, for 4 viewers: trap 5".into(),
        at_ms: 1_750_000_002_000,
        is_only_host: false,
    };
    let lift = Lift {
        policy: policy("baseline@1.0.0"),
        reason: "a bad disk".into(),
        by: "ada".into(),
        at_ms: 1_750_000_003_000,
        base_revision: 20,
    };
    let host = "5b0c3f9e-6a55-4b6e-9d0a-0f3f0a9d1c11".to_owned();
    let by_host = BTreeMap::from([(host, withdrawal)]);
    RegistryState {
        revision: 22,
        withdrawals: BTreeMap::from([(QUARANTINED.parse().unwrap(), by_host)]),
        lifts: BTreeMap::from([(POLICIES[0].1.parse().unwrap(), lift)]),
        ..RegistryState::default()
    }
}

#[tokio::test]
async fn a_stored_state_is_read_and_written_again_to_the_same_bytes() {
    let fleet = Fleet::new().await;
    let last_good = fleet.last_good("here");
    let path = fleet.data_dir("here").join("registry/state.json");
    fleet.cut_off("here", true);
    for (stored, head) in [
        (STORED, None),
        (STORED_WITH_HEAD, Some(HEAD.parse().unwrap())),
    ] {
        std::fs::write(&path, stored).unwrap();
        let state = last_good.load().await.unwrap();
        assert_state(&state);
        assert_eq!(state.head, head);
        durable_file::write_json(path.clone(), &state)
            .await
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), stored);
    }
}

#[tokio::test]
async fn a_state_with_withdrawals_is_read_and_written_again_to_the_same_bytes() {
    let fleet = Fleet::new().await;
    let last_good = fleet.last_good("here");
    let path = fleet.data_dir("here").join("registry/state.json");
    std::fs::write(&path, STORED_WITH_WITHDRAWALS).unwrap();
    fleet.cut_off("here", true);
    let state = last_good.load().await.unwrap();
    assert_eq!(state, with_withdrawals());
    durable_file::write_json(path.clone(), &state)
        .await
        .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), STORED_WITH_WITHDRAWALS);
}

#[tokio::test]
async fn a_module_is_found_under_its_digest() {
    let fleet = Fleet::new().await;
    let last_good = fleet.last_good("here");
    let digest = Digest::from_content(b"module");
    let directory = fleet.data_dir("here").join("registry/modules");
    std::fs::write(directory.join(format!("{digest}.wasm")), b"module").unwrap();
    fleet.cut_off("here", true);
    let found = last_good.module(digest).await.unwrap();
    assert_eq!(found.as_deref(), Some(&b"module"[..]));
}
