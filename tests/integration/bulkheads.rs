//! Bounds between policies: none takes the workers, the processor time or the memory of the
//! others, and the host runs where addresses are scarce.

use crate::experiments::Lab;
use crate::harness::{Host, guest, manifest, post_ids};
use crate::recipes::{calm, label, patient_setup, with_params};
use futures::future::join_all;
use serde_json::{Value, json};

/// Viewers who are forced into the experiment, and viewers who are not.
const TRIED: std::ops::Range<u64> = 1..21;
const OTHERS: std::ops::Range<u64> = 101..181;

/// Serves a policy to the viewers of `TRIED` alone.
async fn try_on_some(lab: &Lab, policy: &str) {
    let overrides: serde_json::Map<String, Value> = TRIED
        .map(|viewer| (viewer.to_string(), json!("tried")))
        .collect();
    let spec = json!({"variations": [{"key": "tried", "weight": 1.0, "policy": policy}],
                      "coverage": 0.0, "overrides": overrides});
    lab.run("tried", &spec).await;
}

async fn feeds(lab: &Lab, viewers: impl Iterator<Item = u64>) -> Vec<Value> {
    join_all(viewers.map(|viewer| lab.feed(viewer))).await
}

async fn counted(host: &Host, policy: &str, outcome: &str) -> f64 {
    let mut sum = 0.0;
    for stage in ["dedup", "score", "saturation"] {
        let series = format!(
            "nova_feed_policy_calls_total{{outcome=\"{outcome}\",policy=\"{policy}\",stage=\"{stage}\"}}"
        );
        sum += host.metric(&series).await;
    }
    sum
}

#[tokio::test]
async fn a_policy_that_burns_its_time_is_shed_and_takes_no_worker_from_the_others() {
    let lab = Lab::of(
        patient_setup()
            .variable("WORKER_CONCURRENCY", "2")
            .variable("NOVA_POLICY_CPU_PERCENT", "1")
            .variable("NOVA_SNAPSHOT_TTL_S", "0")
            .variable("NOVA_POLICY_DEADLINE_MS_MAX", "1000")
            .variable("NOVA_FAILURE_BUDGET_MIN_FAILURES", "1000000")
            .start(),
    );
    let host = &lab.host;
    let operator = host.operator();
    operator
        .publish_and_activate(&calm("calm", "1.0.0"), &[])
        .await;
    let burns = manifest("burns", "1.0.0", "score", "burns.wasm")
        + "[limits]\ndeadline_ms = 1000\nmemory_mb = 16\n";
    operator
        .publish(&burns, &[("burns.wasm", guest("burns.wasm"))])
        .await;
    try_on_some(&lab, "burns@1.0.0").await;
    // On a busy machine the policy gets little of the processor, and spends its share later.
    let mut calls = 0;
    while counted(host, "burns@1.0.0", "cpu_share").await == 0.0 {
        let (tried, others) = tokio::join!(feeds(&lab, TRIED), feeds(&lab, OTHERS));
        for feed in &others {
            assert_eq!(feed["served_by"], "policy", "{feed}");
            assert_eq!(label(&feed["policy"]), "calm@1.0.0");
            assert_eq!(feed["degraded"], json!([]));
        }
        // A viewer whose policy gets no time is served by the active policy, not by less.
        for feed in &tried {
            assert_eq!(feed["served_by"], "last_good", "{feed}");
            assert_eq!(label(&feed["policy"]), "calm@1.0.0");
            assert_eq!(post_ids(feed).len(), 50);
        }
        calls += TRIED.count();
        assert!(calls < 400, "the policy is never shed");
    }
    assert!(counted(host, "burns@1.0.0", "deadline").await > 0.0);
    assert_eq!(counted(host, "calm@1.0.0", "pool").await, 0.0);
    let refused = counted(host, "burns@1.0.0", "cpu_share").await
        + counted(host, "burns@1.0.0", "pool").await
        + counted(host, "burns@1.0.0", "deadline").await;
    assert_eq!(refused, calls as f64, "each call is counted once");
}

#[tokio::test]
async fn instances_of_a_policy_stay_within_the_memory_budget_and_the_others_go_on() {
    const BUDGET_MIB: usize = 256;
    let lab = Lab::of(
        patient_setup()
            .variable("WORKER_CONCURRENCY", "4")
            .variable("NOVA_SNAPSHOT_TTL_S", "0")
            .variable("NOVA_POLICY_MEMORY_MB", &BUDGET_MIB.to_string())
            .start(),
    );
    let host = &lab.host;
    let operator = host.operator();
    operator
        .publish_and_activate(&calm("calm", "1.0.0"), &[])
        .await;
    let limits = "[limits]\ndeadline_ms = 1000\nmemory_mb = 256\ninstance = \"reuse\"\n";
    let holds = manifest("holds-memory", "1.0.0", "score", "holds.wasm");
    let holds = with_params(&holds, "score", "{ mib = 100.0 }") + limits;
    operator
        .publish(&holds, &[("holds.wasm", guest("holds_memory.wasm"))])
        .await;
    feeds(&lab, OTHERS.take(8)).await;
    let before = host.peak_memory_bytes();

    // Not active, the policy gets three quarters of the budget: one instance at a time.
    try_on_some(&lab, "holds-memory@1.0.0").await;
    for _ in 0..3 {
        let (tried, others) = tokio::join!(feeds(&lab, TRIED), feeds(&lab, OTHERS));
        for feed in &others {
            assert_eq!(feed["served_by"], "policy", "{feed}");
        }
        for feed in &tried {
            assert_eq!(post_ids(feed).len(), 50, "{feed}");
        }
    }
    // Active, it gets all of it: two instances at a time.
    operator.activate("holds-memory@1.0.0").await.ok(200);
    for round in 0..3_u64 {
        let viewers = (0..40).map(|viewer| 1_000 + 100 * round + viewer);
        for feed in feeds(&lab, viewers).await {
            assert_eq!(post_ids(&feed).len(), 50, "{feed}");
        }
    }
    assert!(counted(host, "holds-memory@1.0.0", "pool").await > 0.0);
    let grown = host.peak_memory_bytes() - before;
    assert!(
        grown < (BUDGET_MIB + BUDGET_MIB / 4) << 20,
        "{} MiB more",
        grown >> 20
    );
    let list = operator.get("/admin/v1/policies").await;
    let memory = &list["serving"]["memory"];
    assert_eq!(memory["budget_bytes"], BUDGET_MIB << 20);
    assert!(memory["used_bytes"].as_u64().unwrap() <= (BUDGET_MIB as u64) << 20);
    // Refused memory is not the policy's fault.
    let policies = list["policies"].as_array().unwrap();
    let holds = policies.iter().find(|p| p["name"] == "holds-memory");
    assert_eq!(holds.unwrap()["state"], "active");
}

#[tokio::test]
async fn the_operators_deadline_applies_to_a_policy_that_was_published_with_a_longer_one() {
    let lab = Lab::of(
        patient_setup()
            .variable("NOVA_POLICY_DEADLINE_MS_MAX", "1")
            .start(),
    );
    let host = &lab.host;
    let operator = host.operator();
    let burns = manifest("burns", "1.0.0", "score", "burns.wasm");
    let limits = "[limits]\ndeadline_ms = 1000\nmemory_mb = 16\n";
    // About a hundred milliseconds of work.
    let burns = with_params(&burns, "score", "{ million_turns = 100.0 }") + limits;
    operator
        .publish_and_activate(&burns, &[("burns.wasm", guest("burns.wasm"))])
        .await;
    let feed = lab.feed(7).await;
    assert_ne!(feed["served_by"], "policy", "{feed}");
    assert_eq!(post_ids(&feed).len(), 50);
    assert!(counted(host, "burns@1.0.0", "deadline").await > 0.0);
}

#[cfg(unix)]
#[tokio::test]
async fn a_host_with_little_address_space_starts_says_so_and_ranks() {
    for gib in [512, 64] {
        let lab = Lab::of(patient_setup().address_space_gib(gib).start());
        let operator = lab.host.operator();
        operator
            .publish_and_activate(&calm("calm", "1.0.0"), &[])
            .await;
        for feed in feeds(&lab, OTHERS).await {
            assert_eq!(feed["served_by"], "policy", "{feed}");
            assert_eq!(label(&feed["policy"]), "calm@1.0.0");
        }
        let said = "the address space is too small for a reserved pool of instances";
        let log = lab.host.log();
        assert_eq!(log.matches(said).count(), 1, "{log}");
    }
}
