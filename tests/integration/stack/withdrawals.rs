//! Policies that fail on a fleet of three hosts: which failures take a policy out of service, how
//! soon, and what viewers get meanwhile.

use super::fleet::{BASELINE, all_serve, three_hosts};
use crate::harness::{Host, guest, manifest, nova};
use crate::recipes::{label, text, with_params};
use crate::services::Stack;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Time within which a host takes a policy out of its service, from the first five failures of
/// three viewers.
const OUT_WITHIN: Duration = Duration::from_secs(2);
/// Longest time that a busy machine may take to tell the other hosts of a change.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

const GAUGES: [&str; 3] = [
    "nova_feed_policy_withdrawn",
    "nova_feed_policy_quarantined",
    "nova_feed_policy_native_only",
];

/// Publishes and activates a policy that traps for every viewer whose id is a multiple of `every`.
async fn activate_bad(hosts: &[Host], every: u64) {
    let file = "misbehaves_for_some.wasm";
    let params = format!("{{ every = {every}.0 }}");
    let text = with_params(&manifest("bad", "1.0.0", "score", file), "score", &params);
    let operator = hosts[0].operator();
    let modules = [(file, guest(file))];
    operator.publish_and_activate(&text, &modules).await;
    all_serve(hosts, "bad@1.0.0", NOTICED_WITHIN).await;
}

/// Requests a feed, which must be a whole page of some policy.
async fn whole_feed(host: &Host, viewer: u64) -> Value {
    let feed = host.feed(viewer).await;
    assert_eq!(feed["posts"].as_array().unwrap().len(), 50, "{feed}");
    assert!(["policy", "last_good", "native"].contains(&&*text(&feed["served_by"])));
    feed
}

async fn failures(host: &Host) -> f64 {
    let trap =
        "nova_feed_policy_calls_total{outcome=\"trap\",policy=\"bad@1.0.0\",stage=\"score\"}";
    host.metric(trap).await
}

async fn out_of_service(host: &Host) -> Vec<Value> {
    let list = host.operator().get("/admin/v1/policies").await;
    let out = &list["serving"]["out_of_service"];
    out.as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_traps_for_one_viewer_in_a_thousand_stays_in_service_and_shows_in_one_metric()
{
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let hosts = three_hosts(&stack).await;
    activate_bad(&hosts, 1_000).await;
    for viewer in 901..1_000 {
        let feed = whole_feed(&hosts[viewer as usize % 3], viewer).await;
        assert_eq!(label(&feed["policy"]), "bad@1.0.0");
    }
    // The viewer reloads more often than the budget allows failures, on every host.
    for reload in 0..45 {
        let feed = whole_feed(&hosts[reload % 3], 1_000).await;
        assert_eq!(feed["served_by"], "last_good");
        assert_eq!(label(&feed["policy"]), BASELINE);
    }
    all_serve(&hosts, "bad@1.0.0", NOTICED_WITHIN).await;
    for host in &hosts {
        assert!(failures(host).await >= 15.0);
        for gauge in GAUGES {
            assert_eq!(host.metric(gauge).await, 0.0, "{gauge}");
        }
        assert!(out_of_service(host).await.is_empty());
    }
    shows_its_author_how_it_fails(&hosts[0]).await;
}

async fn shows_its_author_how_it_fails(host: &Host) {
    let scientist = host.admin_token("scientist");
    let path = "/admin/v1/policies/bad/1.0.0/failures";
    let report = host.get(&scientist, path).await.ok(200);
    let [failure] = &report["failures"].as_array().unwrap()[..] else {
        panic!("{report}");
    };
    assert_eq!(
        (&failure["stage"], &failure["kind"]),
        (&json!("score"), &json!("trap"))
    );
    assert!(failure["count"].as_u64() >= Some(15), "{report}");
    assert!(text(&failure["text"]).contains("unreachable"), "{report}");
    host.get(&scientist, "/admin/v1/policies/bad/9.0.0/failures")
        .await
        .problem(404);
    let shown = nova()
        .args([
            "policy",
            "failures",
            "bad@1.0.0",
            "--host",
            &host.url,
            "--token",
            &scientist,
        ])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("score, trap:") && shown.contains("unreachable"),
        "{shown}"
    );
}

/// Requests feeds from one host until the policy no longer serves there. Returns the time since the
/// first five failures of three viewers, or `None` if other hosts agreed before.
async fn feed_until_out(host: &Host, mut viewer: u64) -> Option<Duration> {
    let (mut failed, mut viewers, mut spent_at) = (0, BTreeSet::new(), None);
    loop {
        viewer += 1;
        let feed = whole_feed(host, viewer).await;
        match (&*text(&feed["served_by"]), &*label(&feed["policy"])) {
            ("policy", "bad@1.0.0") => {}
            ("policy", _) => return spent_at.map(|at: Instant| at.elapsed()),
            _ => {
                failed += 1;
                viewers.insert(viewer);
            }
        }
        if failed >= 5 && viewers.len() >= 3 && spent_at.is_none() {
            spent_at = Some(Instant::now());
        }
        assert!(
            spent_at.is_none_or(|at: Instant| at.elapsed() < OUT_WITHIN),
            "the policy serves on after {failed} failures"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_traps_for_a_fifth_of_the_viewers_is_out_on_every_host_and_no_request_fails()
{
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let hosts = three_hosts(&stack).await;
    activate_bad(&hosts, 5).await;
    let clients = hosts.iter().zip([10_000, 20_000, 30_000]);
    let clients = clients.map(|(host, first)| feed_until_out(host, first));
    for (host, took) in futures::future::join_all(clients).await.iter().enumerate() {
        eprintln!("host {host}: out {took:?} after its first five failures of three viewers");
    }
    all_serve(&hosts, BASELINE, NOTICED_WITHIN).await;
    let log = super::fleet::log(&hosts[0]).await;
    let actions: Vec<&str> = log
        .iter()
        .filter_map(|entry| entry["action"].as_str())
        .collect();
    assert!(
        actions
            .iter()
            .filter(|action| **action == "withdraw")
            .count()
            >= 2,
        "{actions:?}"
    );
    assert!(
        actions.contains(&"quarantine") && actions.contains(&"rollback"),
        "{actions:?}"
    );
    for host in &hosts {
        assert_eq!(host.metric(GAUGES[1]).await, 1.0);
    }

    let lift = json!({ "reason": "repaired" });
    let operator = hosts[1].admin_token("operator");
    let path = "/admin/v1/policies/bad/1.0.0/lift";
    hosts[1]
        .post(&hosts[1].admin_token("scientist"), path, &lift)
        .await
        .problem(403);
    hosts[1]
        .post(&operator, path, &json!({}))
        .await
        .problem(400);
    let lifted = hosts[1].post(&operator, path, &lift).await.ok(200);
    assert_eq!(lifted["state"], "published");
    hosts[1].post(&operator, path, &lift).await.problem(409);
    for host in &hosts {
        crate::harness::eventually(NOTICED_WITHIN, "nothing is out of service", async || {
            out_of_service(host).await.is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_fails_on_one_host_leaves_that_host_only_and_a_command_shows_and_lifts_it() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let hosts = three_hosts(&stack).await;
    activate_bad(&hosts, 5).await;
    // Only this host is asked for the viewers for whom the policy fails.
    feed_until_out(&hosts[0], 10_000).await.unwrap();
    for host in &hosts[1..] {
        let feed = whole_feed(host, 1).await;
        assert_eq!(label(&feed["policy"]), "bad@1.0.0");
        crate::harness::eventually(NOTICED_WITHIN, "the other hosts know", async || {
            out_of_service(host).await.len() == 1
        })
        .await;
        assert_eq!(host.metric(GAUGES[0]).await, 0.0);
    }
    let policy = |arguments: &[&str]| {
        let operator = hosts[2].admin_token("operator");
        let target = ["--host", &hosts[2].url, "--token", &operator];
        let output = nova().arg("policy").args(arguments).args(target).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let status = policy(&["status"]);
    assert!(
        status.contains("bad@1.0.0  out of service on host "),
        "{status}"
    );
    let lifted = policy(&["lift", "bad@1.0.0", "--reason", "a bad disk"]);
    assert_eq!(lifted, "bad@1.0.0 is active\n");
    crate::harness::eventually(NOTICED_WITHIN, "the host serves it again", async || {
        label(&whole_feed(&hosts[0], 1).await["policy"]) == "bad@1.0.0"
    })
    .await;
}
