//! Policies in shadow: they rank the same requests in the background and report on it, without
//! any effect on responses.

use crate::harness::{Host, eventually, guest, manifest, nova, post_ids};
use crate::recipes::{AMPLE, Operator, SOON, calm, label, patient_setup};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// Starts a host without caching, so that every feed is ranked and gives shadows a ranking to
/// compare with.
fn start() -> Host {
    patient_setup()
        .variable("NOVA_ENABLE_CACHING", "false")
        .start()
}

fn path(policy: &str) -> String {
    format!("/admin/v1/policies/{}/shadow", policy.replacen('@', "/", 1))
}

impl Operator<'_> {
    /// Publishes a policy with one of the guests as its scorer, and puts it in shadow.
    async fn shadow(&self, host: &Host, name: &str) -> String {
        let file = format!("{}.wasm", name.replace('-', "_"));
        let text = manifest(name, "1.0.0", "score", &file) + AMPLE;
        let published = self.publish(&text, &[(&file, guest(&file))]).await;
        let policy = label(&published);
        let answer = host.post(&self.token, &path(&policy), &json!({})).await;
        assert_eq!(answer.ok(200)["state"], "shadow");
        policy
    }

    async fn report(&self, policy: &str) -> Value {
        self.get(&path(policy)).await
    }

    /// Requests feeds until the shadow's report satisfies `what`.
    async fn reports(&self, host: &Host, policy: &str, what: impl Fn(&Value) -> bool) -> Value {
        // An error budget is spent by the failures of several viewers, so several ask.
        let viewer = AtomicU64::new(7);
        eventually(SOON, "the shadow reports", || async {
            host.feed(viewer.fetch_add(1, Ordering::Relaxed)).await;
            what(&self.report(policy).await)
        })
        .await;
        self.report(policy).await
    }
}

#[tokio::test]
async fn a_shadow_reports_its_ranking_and_changes_no_response() {
    let host = start();
    let operator = host.operator();
    let scientist = host.admin_token("scientist");
    operator
        .publish_and_activate(&calm("calm", "1.0.0"), &[])
        .await;
    let before = host.feed(7).await;
    let policy = operator.shadow(&host, "upside-down").await;
    let unrun = host.get(&scientist, &path(&policy)).await.ok(200);
    assert_eq!((&unrun["runs"], &unrun["since"]), (&json!(0), &json!(null)));

    let report = operator
        .reports(&host, &policy, |report| report["runs"].as_u64() >= Some(5))
        .await;
    assert_eq!(report["ok"], report["runs"]);
    assert_eq!(
        (&report["failures"], &report["stopped"]),
        (&json!({}), &json!(null))
    );
    let comparison = &report["comparison"];
    assert!(
        comparison["overlap"]["mean"].as_f64().unwrap() < 1.0,
        "{report}"
    );
    assert!(
        comparison["kendall_tau"]["mean"].as_f64().unwrap() < 0.5,
        "{report}"
    );
    assert_eq!(comparison["entered"]["p50"], comparison["left"]["p50"]);
    assert!(comparison["authors"]["max_share_after"]["mean"].is_number());
    assert!(report["p99_ms"].as_f64().unwrap() > 0.0);
    let status = nova()
        .args([
            "policy",
            "status",
            "--host",
            &host.url,
            "--token",
            &operator.token,
        ])
        .output()
        .unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("upside-down@1.0.0  shadow: "));
    assert!(
        line.is_some_and(|line| line.contains("of the page in common")),
        "{status}"
    );

    let after = host.feed(7).await;
    assert_eq!(post_ids(&after), post_ids(&before));
    for field in ["policy", "served_by", "degraded", "experiment"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    let cached = operator.get("/debug/user/7/feed/cache").await;
    assert_eq!(cached["newest_snapshot"]["policy"], "calm@1.0.0");
    // Stages run in shadow do not count as policy calls for viewers.
    let calls =
        "nova_feed_policy_calls_total{outcome=\"ok\",policy=\"upside-down@1.0.0\",stage=\"score\"}";
    assert_eq!(host.metric(calls).await, 0.0);
    let runs = "nova_feed_shadow_runs_total{outcome=\"ok\",policy=\"upside-down@1.0.0\"}";
    assert!(host.metric(runs).await >= 5.0);
}

#[tokio::test]
async fn a_shadow_that_exhausts_its_error_budget_is_stopped_and_reported_without_other_effects() {
    let host = start();
    let operator = host.operator();
    let policy = operator.shadow(&host, "trap").await;
    let report = operator
        .reports(&host, &policy, |report| !report["stopped"].is_null())
        .await;
    let reason = report["stopped"]["reason"].as_str().unwrap();
    assert!(reason.contains("trap"), "{reason}");
    let runs = report["runs"].as_u64().unwrap();
    assert_eq!(report["failures"], json!({ "trap": runs }));
    for _ in 0..5 {
        let feed = host.feed(7).await;
        assert_eq!(
            (
                &feed["served_by"],
                &feed["degraded"],
                label(&feed["policy"])
            ),
            (&json!("policy"), &json!([]), "baseline@1.0.0".to_owned())
        );
    }
    assert_eq!(operator.report(&policy).await["runs"], runs);
    assert_eq!(host.metric("nova_feed_policy_quarantined").await, 0.0);
    // Restarting a stopped shadow gives it a new error budget.
    let canary = "/admin/v1/policies/trap/1.0.0/canary";
    host.post(&operator.token, canary, &json!({ "percent": 0 }))
        .await
        .ok(200);
    host.get(&operator.token, &path(&policy)).await.problem(404);
    let another = operator.shadow(&host, "upside-down").await;
    operator
        .reports(&host, &another, |report| report["runs"].as_u64() >= Some(1))
        .await;
    host.post(&operator.token, &path(&policy), &json!({}))
        .await
        .ok(200);
    let report = operator
        .reports(&host, &policy, |report| !report["stopped"].is_null())
        .await;
    assert!(report["runs"].as_u64().unwrap() <= runs + 1, "{report}");
}

#[tokio::test]
async fn an_endless_shadow_blocks_no_worker_and_its_dropped_runs_are_counted() {
    let host = patient_setup()
        .variable("NOVA_ENABLE_CACHING", "false")
        .variable("WORKER_CONCURRENCY", "1")
        .variable("NOVA_SHADOW_CPU_PERCENT", "1")
        .start();
    let operator = host.operator();
    operator
        .publish_and_activate(&calm("calm", "1.0.0"), &[])
        .await;
    let policy = operator.shadow(&host, "endless-loop").await;
    let token = host.viewer_token(7);
    for _ in 0..200 {
        let feed = host.get(&token, "/api/v1/feed").await.ok(200);
        assert_eq!(feed["served_by"], "policy");
    }
    // The queue is far shorter than the number of feeds, and one run takes longer than all of
    // them together.
    assert!(operator.report(&policy).await["dropped"].as_u64() >= Some(100));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_shadows_thread_has_the_lowest_priority() {
    let host = start();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", host.process_id())).unwrap();
    let niceness = tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .filter_map(|stat| {
            let (head, rest) = stat.rsplit_once(')')?;
            head.ends_with("(shadow")
                .then(|| rest.split_whitespace().nth(16)?.parse::<i32>().ok())?
        });
    assert_eq!(niceness.collect::<Vec<_>>(), [19]);
}
