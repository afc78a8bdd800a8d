//! Misbehaving policies. A policy can never break a feed: for every kind of failure the next
//! step of the fallback chain serves the same request, and the failure is counted by its kind.

use crate::harness::{Host, guest, manifest, post_ids};
use crate::recipes::{AMPLE, Operator, calm, label, patient_setup, with_params};
use futures::future::join_all;
use serde_json::{Value, json};
use std::collections::HashSet;

struct Hostile {
    guest: &'static str,
    stage: &'static str,
    outcome: &'static str,
}

const fn hostile(guest: &'static str, stage: &'static str, outcome: &'static str) -> Hostile {
    Hostile {
        guest,
        stage,
        outcome,
    }
}

const GUESTS: [Hostile; 12] = [
    hostile("endless_loop", "score", "deadline"),
    hostile("unbounded_allocation", "score", "memory"),
    hostile("trap", "score", "trap"),
    hostile("wrong_length", "score", "contract_length"),
    hostile("nan_scores", "score", "contract_nonfinite"),
    hostile("infinite_scores", "score", "contract_nonfinite"),
    hostile("dedup_repeated_index", "dedup", "contract_repeat"),
    hostile("dedup_index_out_of_range", "dedup", "contract_range"),
    hostile("dedup_empty", "dedup", "contract_empty"),
    hostile("saturate_repeated_index", "saturation", "contract_repeat"),
    hostile(
        "saturate_index_out_of_range",
        "saturation",
        "contract_range",
    ),
    hostile("saturate_short", "saturation", "contract_length"),
];

impl Hostile {
    fn name(&self) -> String {
        self.guest.replace('_', "-")
    }

    /// Publishes and activates this policy. A guest that is meant to exceed its deadline gets
    /// the default deadline; the others get an ample one, so that they fail in their own way.
    async fn take_over(&self, operator: &Operator<'_>) {
        let file = format!("{}.wasm", self.guest);
        let mut text = manifest(&self.name(), "1.0.0", self.stage, &file);
        if self.outcome != "deadline" {
            text += AMPLE;
        }
        operator
            .publish_and_activate(&text, &[(&file, guest(&file))])
            .await;
    }

    async fn counted(&self, host: &Host) -> f64 {
        let (name, stage, outcome) = (self.name(), self.stage, self.outcome);
        let series = format!(
            "nova_feed_policy_calls_total{{outcome=\"{outcome}\",policy=\"{name}@1.0.0\",stage=\"{stage}\"}}"
        );
        host.metric(&series).await
    }
}

/// Asserts that a feed was served by the last good policy, and which policy that was.
#[track_caller]
fn assert_last_good(feed: &Value, policy: &str, why: &str) {
    let said = [
        &feed["served_by"],
        &feed["degraded"],
        &feed["algo"],
        &feed["fallback"],
    ];
    let expected = [
        &json!("last_good"),
        &json!(["policy"]),
        &json!("ch"),
        &json!(false),
    ];
    assert_eq!(said, expected, "{why}");
    assert_eq!(label(&feed["policy"]), policy, "{why}");
}

#[track_caller]
fn assert_well_formed(feed: &Value) {
    let posts = post_ids(feed);
    assert_eq!(posts.len(), 50);
    assert_eq!(
        posts.iter().collect::<HashSet<_>>().len(),
        50,
        "a post was shown twice"
    );
    for post in feed["posts"].as_array().unwrap() {
        assert!(post["score"].as_f64().unwrap().is_finite(), "{post}");
    }
}

const VIEWERS: [u64; 3] = [7, 41, 999_999];

#[tokio::test]
async fn every_hostile_guest_falls_back_to_the_previous_policy_and_is_counted_by_its_kind() {
    let host = patient_setup().start();
    let operator = host.operator();
    operator
        .publish_and_activate(&calm("calm", "1.0.0"), &[])
        .await;
    let mut expected = Vec::new();
    for viewer in VIEWERS {
        expected.push(post_ids(&host.feed(viewer).await));
    }
    for hostile in GUESTS {
        hostile.take_over(&operator).await;
        for (viewer, expected) in VIEWERS.into_iter().zip(&expected) {
            let feed = host.feed(viewer).await;
            assert_well_formed(&feed);
            assert_last_good(&feed, "calm@1.0.0", hostile.guest);
            assert_eq!(
                post_ids(&feed),
                *expected,
                "{} for viewer {viewer}",
                hostile.guest
            );
        }
        let counted = hostile.counted(&host).await;
        assert_eq!(
            counted,
            VIEWERS.len() as f64,
            "{} as {}",
            hostile.guest,
            hostile.outcome
        );
        operator.rollback().await.ok(200);
        let healed = host.feed(VIEWERS[0]).await;
        assert_eq!(
            (&healed["served_by"], &healed["degraded"]),
            (&json!("policy"), &json!([]))
        );
    }
}

#[tokio::test]
async fn twenty_requests_at_once_under_an_endless_loop_are_all_ranked_by_the_last_good_policy() {
    let host = patient_setup().start();
    let operator = host.operator();
    operator
        .publish_and_activate(&calm("calm", "1.0.0"), &[])
        .await;
    let token = host.viewer_token(7);
    let expected = post_ids(&host.get(&token, "/api/v1/feed").await.ok(200));
    GUESTS[0].take_over(&operator).await;
    let feeds = join_all((0..20).map(|_| host.get(&token, "/api/v1/feed"))).await;
    for feed in feeds.into_iter().map(|answer| answer.ok(200)) {
        assert_last_good(&feed, "calm@1.0.0", "endless_loop");
        assert_eq!(post_ids(&feed), expected);
    }
    assert_eq!(GUESTS[0].counted(&host).await, 20.0);
}

#[tokio::test]
async fn requests_without_a_free_worker_in_time_are_ranked_natively_and_counted_as_pool() {
    // One worker that each request blocks for 20 ms, and a policy budget of 30 ms.
    let host = Host::setup()
        .community(crate::harness::Community::small())
        .variable("NOVA_RATE_LIMIT", "off")
        .variable("WORKER_CONCURRENCY", "1")
        .variable("NOVA_POLICY_BUDGET_MS", "30")
        .start();
    GUESTS[0].take_over(&host.operator()).await;
    let token = host.viewer_token(7);
    let feeds = join_all((0..20).map(|_| host.get(&token, "/api/v1/feed"))).await;
    let feeds: Vec<Value> = feeds.into_iter().map(|answer| answer.ok(200)).collect();
    let mut native = 0;
    for feed in &feeds {
        assert_well_formed(feed);
        assert_eq!(feed["degraded"], json!(["policy"]));
        native += u32::from(feed["served_by"] == "native");
    }
    assert!(native > 0, "no request exceeded its policy budget");
    let series = "nova_feed_policy_calls_total{outcome=\"pool\",policy=\"endless-loop@1.0.0\",stage=\"dedup\"}";
    assert!(host.metric(series).await > 0.0);
}

#[tokio::test]
async fn after_two_hostile_policies_the_native_copy_of_the_bundled_logic_ranks() {
    let host = patient_setup().start();
    let operator = host.operator();
    let shipped = manifest("shipped", "1.0.0", "none", "") + AMPLE;
    operator.publish(&shipped, &[]).await;
    for hostile in &GUESTS[2..4] {
        hostile.take_over(&operator).await;
    }
    // Scores of the native copy depend on the time, so its order is compared only if the
    // expected order was the same before and after the request.
    for _ in 0..20 {
        let before = operator.explained(7, "shipped@1.0.0").await;
        let feed = host.feed(7).await;
        let after = operator.explained(7, "shipped@1.0.0").await;
        assert_well_formed(&feed);
        assert_eq!(
            (&feed["served_by"], &feed["policy"]["name"], &feed["algo"]),
            (&json!("native"), &json!("native"), &json!("ch"))
        );
        assert_eq!(
            (&feed["degraded"], &feed["fallback"]),
            (&json!(["policy"]), &json!(false))
        );
        if before == after {
            assert_eq!(post_ids(&feed), before);
            return;
        }
    }
    panic!("the expected order changed during each of the 20 requests");
}

#[tokio::test]
async fn a_policy_that_fails_for_one_viewer_affects_no_other_viewer_and_rollback_ends_it() {
    let host = patient_setup().start();
    let operator = host.operator();
    operator
        .publish_and_activate(&calm("calm", "1.0.0"), &[])
        .await;
    let before = post_ids(&host.feed(7).await);
    let text = manifest("picky", "1.0.0", "score", "misbehaves_after.wasm") + AMPLE;
    operator
        .publish_and_activate(
            &with_params(&text, "score", "{ victim = 7 }"),
            &[("misbehaves_after.wasm", guest("misbehaves_after.wasm"))],
        )
        .await;
    let (victim, other) = (host.feed(7).await, host.feed(8).await);
    assert_last_good(&victim, "calm@1.0.0", "the victim");
    assert_eq!(post_ids(&victim), before);
    assert_eq!(
        (&other["served_by"], label(&other["policy"])),
        (&json!("policy"), "picky@1.0.0".to_owned())
    );
    assert_eq!(other["degraded"], json!([]));

    operator.rollback().await.ok(200);
    let healed = host.feed(7).await;
    assert_eq!(
        (&healed["served_by"], label(&healed["policy"])),
        (&json!("policy"), "calm@1.0.0".to_owned())
    );
    assert_eq!(post_ids(&healed), before);
}
