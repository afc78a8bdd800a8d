//! The life cycle of a policy: canary, retirement, quarantine, and the automatic removal of a
//! bad policy.

use crate::experiments::{Lab, bucket, halves, whole};
use crate::harness::{Answer, Community, Host, eventually, guest, manifest, run};
use crate::recipes::{AMPLE, SOON, calm, label, patient_setup, text, with_params};
use futures::{StreamExt as _, stream};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Instant;

/// The smallest viewer id for which `misbehaves_from` traps.
const FIRST_VICTIM: u64 = 1_000_000;
/// Concurrent requests: a few more than there are cores.
const CLIENTS: usize = 8;

impl Lab {
    async fn life(&self, role: &str, policy: &str, step: &str, body: Value) -> Answer {
        let policy = policy.replacen('@', "/", 1);
        let path = format!("/admin/v1/policies/{policy}/{step}");
        let token = self.host.admin_token(role);
        match body {
            Value::Null => {
                let request = self.host.request(Method::POST, &path).bearer_auth(&token);
                self.host.send(request).await
            }
            body => self.host.post(&token, &path, &body).await,
        }
    }

    async fn canary(&self, policy: &str, percent: f64) -> Answer {
        let body = json!({ "percent": percent });
        self.life("operator", policy, "canary", body).await
    }

    async fn quarantine(&self, policy: &str) -> Answer {
        let body = json!({ "reason": "a test" });
        self.life("operator", policy, "quarantine", body).await
    }

    /// Publishes a policy that traps for viewers from `FIRST_VICTIM` on.
    async fn publish_bad(&self, name: &str, version: &str) {
        let file = "misbehaves_from.wasm";
        let params = format!("{{ first_victim = {FIRST_VICTIM}.0 }}");
        let text = with_params(&manifest(name, version, "score", file), "score", &params);
        // Each name gets its own memory limit, because equal behaviour would be quarantined
        // under both names.
        let limits = format!(
            "[limits]\ndeadline_ms = 1000\nmemory_mb = {}\n",
            10 + name.len()
        );
        let operator = self.host.operator();
        operator
            .publish(&(text + &limits), &[(file, guest(file))])
            .await;
    }

    /// Returns the policy that served each of these viewers.
    async fn policies_of(&self, viewers: impl Iterator<Item = u64>) -> Vec<(u64, String)> {
        let asked = stream::iter(viewers)
            .map(|viewer| async move { (viewer, label(&self.feed(viewer).await["policy"])) });
        asked.buffered(CLIENTS).collect().await
    }

    /// Requests feeds of victims until `policy` is quarantined. Asserts that every response is a
    /// full page.
    async fn feed_victims_until_quarantined(&self, policy: &str) {
        let began = Instant::now();
        for victim in FIRST_VICTIM.. {
            let feed = self.feed(victim).await;
            assert_eq!(feed["posts"].as_array().unwrap().len(), 50, "{feed}");
            assert!(["policy", "last_good", "native"].contains(&&*text(&feed["served_by"])));
            if self.state(policy).await == "quarantined" {
                let calls = victim - FIRST_VICTIM + 1;
                println!("{policy}: out after {calls} calls, {:?}", began.elapsed());
                return;
            }
            assert!(began.elapsed() < SOON, "{policy} serves on");
        }
    }

    async fn state(&self, policy: &str) -> String {
        let list = self.host.operator().get("/admin/v1/policies").await;
        let mut entries = list["policies"].as_array().unwrap().iter();
        text(&entries.find(|entry| label(entry) == policy).unwrap()["state"])
    }

    /// Returns (actor, action, subject) of every change except publishing, oldest first.
    async fn log(&self) -> Vec<(String, String, String)> {
        let audit = self.host.operator().get("/admin/v1/audit").await;
        let mut entries: Vec<_> = audit["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| (text(&e["actor"]), text(&e["action"]), text(&e["subject"])))
            .filter(|(_, action, _)| action != "publish")
            .collect();
        entries.reverse();
        entries
    }

    async fn settled(&self, action: &str, subject: &str) {
        let wanted = ("host".into(), action.into(), subject.into());
        let recorded = || async { self.log().await.contains(&wanted) };
        eventually(SOON, "the change is in the registry", recorded).await;
    }
}

#[tokio::test]
async fn a_canary_serves_its_share_of_two_thousand_viewers_and_raising_it_removes_no_viewer() {
    let lab = Lab::open().await;
    let operator = lab.host.operator();
    operator.publish(&calm("calm", "1.0.0"), &[]).await;
    let begun = lab.canary("calm@1.0.0", 10.0).await.ok(200);
    assert_eq!(
        (&begun["state"], &begun["percent"]),
        (&json!("canary"), &json!(10.0))
    );
    let digest = text(&begun["digest"]);
    let expected = |viewer: u64, percent: f64| {
        if bucket(&digest, viewer) < percent / 100.0 {
            "calm@1.0.0"
        } else {
            "patient@1.0.0"
        }
    };
    let served = lab.policies_of(1..=2_000).await;
    for (viewer, policy) in &served {
        assert_eq!(policy, expected(*viewer, 10.0), "viewer {viewer}");
    }
    let inside = served.iter().filter(|(_, p)| p == "calm@1.0.0").count();
    assert!((160..=240).contains(&inside), "{inside} of 2,000 at 10 %");
    lab.canary("calm@1.0.0", 30.0).await.ok(200);
    for (viewer, policy) in lab.policies_of(1..=300).await {
        assert_eq!(policy, expected(viewer, 30.0), "viewer {viewer}");
    }
    lab.canary("calm@1.0.0", 0.0).await.ok(200);
    assert_eq!(lab.state("calm@1.0.0").await, "published");
    let after = lab.policies_of(1..=100).await;
    assert!(after.iter().all(|(_, policy)| policy == "patient@1.0.0"));
}

#[tokio::test]
async fn an_experiment_has_precedence_over_the_canary() {
    let lab = Lab::open().await;
    lab.host
        .operator()
        .publish(&calm("calm", "1.0.0"), &[])
        .await;
    lab.canary("calm@1.0.0", 100.0).await.ok(200);
    let feed = lab.feed(7).await;
    assert_eq!(
        (label(&feed["policy"]), &feed["experiment"]),
        ("calm@1.0.0".into(), &Value::Null)
    );
    lab.run(
        "e",
        &whole(json!({"overrides": {"7": "all"}, "coverage": 0.0})),
    )
    .await;
    let feed = lab.feed(7).await;
    assert_eq!(label(&feed["policy"]), "patient@1.0.0");
    assert_eq!(feed["experiment"]["key"], "e");
    assert_eq!(label(&lab.feed(8).await["policy"]), "calm@1.0.0");
}

#[tokio::test]
async fn a_policy_that_starts_to_trap_is_quarantined_and_rolled_back_without_errors_for_viewers() {
    let lab = Lab::open().await;
    lab.publish_bad("bad", "1.0.0").await;
    lab.host.operator().activate("bad@1.0.0").await.ok(200);
    for (viewer, policy) in lab.policies_of(1..=1_000).await {
        assert_eq!(policy, "bad@1.0.0", "viewer {viewer}");
    }
    lab.feed_victims_until_quarantined("bad@1.0.0").await;
    let feed = lab.feed(7).await;
    assert_eq!(label(&feed["policy"]), "patient@1.0.0");
    assert_eq!(
        (&feed["served_by"], &feed["degraded"]),
        (&json!("policy"), &json!([]))
    );
    lab.settled("rollback", "bad@1.0.0").await;
    let audit = lab.host.operator().get("/admin/v1/audit").await;
    let reason = text(&audit["entries"][0]["detail"]["reason"]);
    assert!(
        reason.contains("bad@1.0.0 is quarantined: ") && reason.contains("trap"),
        "{reason}"
    );
    assert_eq!(lab.host.metric("nova_feed_policy_quarantined").await, 1.0);
    let swaps = "nova_feed_policy_swaps_total{kind=\"automatic_rollback\"}";
    assert_eq!(lab.host.metric(swaps).await, 1.0);
    // The way back is a changed version, or an operator's lift.
    for step in ["activate", "shadow"] {
        let refused = lab.life("operator", "bad@1.0.0", step, Value::Null).await;
        assert!(text(&refused.body["detail"]).contains("publish a changed version"));
        refused.problem(409);
    }
    lab.canary("bad@1.0.0", 5.0).await.problem(409);
    let lift = json!({ "reason": "the community was odd" });
    let lifted = lab
        .life("operator", "bad@1.0.0", "lift", lift.clone())
        .await;
    assert_eq!(lifted.ok(200)["state"], "published");
    lab.life("operator", "bad@1.0.0", "lift", lift)
        .await
        .problem(409);
    assert_eq!(lab.host.metric("nova_feed_policy_quarantined").await, 0.0);
    lab.host.operator().activate("bad@1.0.0").await.ok(200);
    assert_eq!(label(&lab.feed(8).await["policy"]), "bad@1.0.0");
}

/// The deadline is short, because only calls that had the processor for all of it count, and a busy
/// machine interrupts a thread every few milliseconds.
#[tokio::test]
async fn a_policy_that_never_returns_is_quarantined_for_its_missed_deadlines() {
    let host = Host::setup()
        .community(Community::small())
        .variable("NOVA_RATE_LIMIT", "off")
        .start();
    let lab = Lab::of(host);
    let file = "endless_loop.wasm";
    let text =
        manifest("endless", "1.0.0", "score", file) + "[limits]\ndeadline_ms = 5\nmemory_mb = 16\n";
    let operator = lab.host.operator();
    operator.publish(&text, &[(file, guest(file))]).await;
    operator.activate("endless@1.0.0").await.ok(200);
    lab.feed_victims_until_quarantined("endless@1.0.0").await;
    lab.settled("rollback", "endless@1.0.0").await;
    let audit = operator.get("/admin/v1/audit?limit=20").await;
    let reason = text_of_rollback(&audit);
    assert!(reason.contains("deadline"), "{reason}");
}

fn text_of_rollback(audit: &Value) -> String {
    let mut entries = audit["entries"].as_array().unwrap().iter();
    let rollback = entries.find(|entry| entry["action"] == "rollback");
    text(&rollback.unwrap()["detail"]["reason"])
}

#[tokio::test]
async fn one_viewer_who_reloads_takes_no_policy_out_of_service() {
    let lab = Lab::open().await;
    lab.publish_bad("bad", "1.0.0").await;
    lab.host.operator().activate("bad@1.0.0").await.ok(200);
    for _ in 0..30 {
        let feed = lab.feed(FIRST_VICTIM).await;
        assert_eq!(feed["served_by"], "last_good");
    }
    assert_eq!(lab.state("bad@1.0.0").await, "active");
    assert_eq!(lab.host.metric("nova_feed_policy_withdrawn").await, 0.0);
}

#[tokio::test]
async fn two_bad_policies_are_both_rolled_back_down_to_the_last_good_one() {
    let lab = Lab::open().await;
    for name in ["bad", "worse"] {
        lab.publish_bad(name, "1.0.0").await;
        lab.host
            .operator()
            .activate(&format!("{name}@1.0.0"))
            .await
            .ok(200);
    }
    lab.feed_victims_until_quarantined("worse@1.0.0").await;
    // Until here, `bad` ran for at least five requests that `worse` had failed, and it failed them as
    // well. None of them counts. A request may come between the swap and the quarantine, and counts.
    let list = lab.host.operator().get("/admin/v1/policies").await;
    let mut serving = list["serving"]["policies"].as_array().unwrap().iter();
    let bad = serving.find(|policy| policy["policy"] == "bad@1.0.0");
    let bad = bad.unwrap();
    assert!(bad["calls"].as_u64().unwrap() < 5, "{bad}");
    lab.feed_victims_until_quarantined("bad@1.0.0").await;
    let feed = lab.feed(FIRST_VICTIM).await;
    assert_eq!(
        (label(&feed["policy"]), &feed["degraded"]),
        ("patient@1.0.0".into(), &json!([]))
    );
}

#[tokio::test]
async fn a_bad_canary_is_removed_without_affecting_the_active_policy() {
    let lab = Lab::open().await;
    lab.publish_bad("bad", "1.0.0").await;
    lab.canary("bad@1.0.0", 100.0).await.ok(200);
    lab.feed_victims_until_quarantined("bad@1.0.0").await;
    lab.settled("quarantine", "bad@1.0.0").await;
    let log = lab.log().await;
    assert!(
        log.iter().all(|(_, action, _)| action != "rollback"),
        "{log:?}"
    );
    assert_eq!(lab.host.operator().active().await, "patient@1.0.0");
    assert_eq!(label(&lab.feed(7).await["policy"]), "patient@1.0.0");
}

#[tokio::test]
async fn a_quarantined_variation_pauses_its_experiment_and_its_viewers_get_the_active_policy() {
    let lab = Lab::open().await;
    lab.publish_bad("bad", "1.0.0").await;
    let mut spec = whole(json!({}));
    spec["variations"][0]["policy"] = "bad@1.0.0".into();
    lab.run("e", &spec).await;
    assert_eq!(label(&lab.feed(7).await["policy"]), "bad@1.0.0");
    lab.feed_victims_until_quarantined("bad@1.0.0").await;
    let feed = lab.feed(7).await;
    assert_eq!(
        (label(&feed["policy"]), &feed["experiment"]),
        ("patient@1.0.0".into(), &Value::Null)
    );
    lab.settled("put_experiment", "e").await;
    assert_eq!(lab.show("e").await.ok(200)["state"], "paused");
    let refused = lab.step("e", "start").await;
    assert!(text(&refused.body["detail"]).contains("bad@1.0.0 is quarantined"));
    refused.problem(409);
}

#[tokio::test]
async fn an_operators_quarantine_applies_at_once_and_without_any_policy_the_native_copy_ranks() {
    let lab = Lab::open().await;
    // The experiment's variation runs the same policy with other parameters, so it is
    // quarantined as well.
    lab.run("e", &halves("s")).await;
    let answer = lab.quarantine("patient@1.0.0").await.ok(200);
    assert_eq!(answer["state"], "quarantined");
    assert_eq!(label(&lab.feed(7).await["policy"]), "baseline@1.0.0");
    assert_eq!(lab.show("e").await.ok(200)["state"], "paused");
    let log = lab.log().await;
    let newest: Vec<_> = log
        .iter()
        .rev()
        .take(3)
        .map(|(_, action, _)| action.as_str())
        .collect();
    assert_eq!(newest, ["rollback", "put_experiment", "quarantine"]);
    lab.quarantine("baseline@1.0.0").await.ok(200);
    let feed = lab.feed(7).await;
    assert_eq!(
        (&feed["served_by"], &feed["degraded"]),
        (&json!("native"), &json!(["policy"]))
    );
    let operator = lab.host.operator();
    operator.rollback().await.problem(409);
    operator.activate("timeline@1.0.0").await.ok(200);
    assert_eq!(lab.feed(7).await["served_by"], "policy");
}

#[tokio::test]
async fn each_step_needs_its_role_and_a_refusal_says_what_to_do() {
    let lab = Lab::open().await;
    let operator = lab.host.operator();
    operator.publish(&calm("calm", "1.0.0"), &[]).await;
    let steps = [
        ("shadow", Value::Null, &["operator", "scientist"][..]),
        ("canary", json!({"percent": 1}), &["operator"][..]),
        ("quarantine", json!({"reason": "x"}), &["operator"][..]),
        ("retire", Value::Null, &["operator"][..]),
    ];
    for (step, body, allowed) in steps {
        for role in ["operator", "scientist", "experimenter"] {
            // An allowed role gets a 404, because the policy does not exist.
            let status = if allowed.contains(&role) { 404 } else { 403 };
            lab.life(role, "nobody@1.0.0", step, body.clone())
                .await
                .problem(status);
        }
    }
    let shadow = lab
        .life("scientist", "calm@1.0.0", "shadow", Value::Null)
        .await;
    assert_eq!(shadow.ok(200)["state"], "shadow");
    // The role that may start a shadow may also end it.
    let scientist = lab.host.admin_token("scientist");
    let end = || {
        let path = "/admin/v1/policies/calm/1.0.0/shadow";
        lab.host
            .request(Method::DELETE, path)
            .bearer_auth(&scientist)
    };
    let ended = lab.host.send(end()).await.ok(200);
    assert_eq!(ended["state"], "published");
    lab.host.send(end()).await.problem(409);
    for percent in [json!(-1), json!(101), json!("5")] {
        let body = json!({ "percent": percent });
        lab.life("operator", "calm@1.0.0", "canary", body)
            .await
            .problem(400);
    }
    lab.canary("calm@1.0.0", 5.0).await.ok(200);
    let refusals = [
        (
            "timeline@1.0.0",
            "canary",
            json!({"percent": 5}),
            "canary 0",
        ),
        ("patient@1.0.0", "shadow", Value::Null, "shadow another"),
        (
            "patient@1.0.0",
            "retire",
            Value::Null,
            "activate another policy first",
        ),
        ("calm@1.0.0", "shadow", Value::Null, "canary 0"),
    ];
    for (policy, step, body, advice) in refusals {
        let refused = lab.life("operator", policy, step, body).await;
        assert!(
            text(&refused.body["detail"]).contains(advice),
            "{}",
            refused.body
        );
        refused.problem(409);
    }
    let retired = lab
        .life("operator", "calm@1.0.0", "retire", Value::Null)
        .await;
    assert_eq!(retired.ok(200)["state"], "retired");
    operator.activate("calm@1.0.0").await.problem(409);
    assert_eq!(label(&lab.feed(7).await["policy"]), "patient@1.0.0");
}

#[tokio::test]
async fn states_of_policies_survive_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let start = || Lab::of(patient_setup().data_dir(directory.path()).start());
    let mut lab = start();
    let operator = lab.host.operator();
    let patient = manifest("patient", "1.0.0", "none", "") + AMPLE;
    operator.publish_and_activate(&patient, &[]).await;
    for name in ["calm", "still"] {
        let text = calm(name, "1.0.0").replace("= 16", &format!("= {}", 10 + name.len()));
        operator.publish(&text, &[]).await;
    }
    lab.publish_bad("bad", "1.0.0").await;
    lab.canary("calm@1.0.0", 100.0).await.ok(200);
    lab.life("operator", "still@1.0.0", "shadow", Value::Null)
        .await
        .ok(200);
    lab.life("operator", "timeline@1.0.0", "retire", Value::Null)
        .await
        .ok(200);
    lab.quarantine("bad@1.0.0").await.ok(200);
    let states = async |lab: &Lab| {
        let list = lab.host.operator().get("/admin/v1/policies").await;
        let entries = list["policies"].as_array().unwrap().clone();
        entries
            .iter()
            .map(|e| {
                (
                    label(e),
                    text(&e["state"]),
                    e["percent"].clone(),
                    e["quarantine"].clone(),
                )
            })
            .collect::<Vec<_>>()
    };
    let before = states(&lab).await;
    lab.host.kill();
    let lab = start();
    assert_eq!(states(&lab).await, before);
    assert_eq!(label(&lab.feed(7).await["policy"]), "calm@1.0.0");
    for expected in ["active", "canary", "shadow", "retired", "quarantined"] {
        let found = before.iter().any(|(_, state, ..)| state == expected);
        assert!(found, "{expected} of {before:?}");
    }
}

#[tokio::test]
async fn the_commands_take_the_same_steps_and_status_shows_the_serving_policies() {
    let lab = Lab::open().await;
    lab.publish_bad("bad", "1.0.0").await;
    lab.host
        .operator()
        .publish(&calm("calm", "1.0.0"), &[])
        .await;
    let token = lab.host.admin_token("operator");
    let policy = |arguments: &[&str]| {
        let mut all = vec!["policy"];
        all.extend(arguments);
        all.extend(["--host", &lab.host.url, "--token", &token]);
        let output = run(&all);
        let said = String::from_utf8(output.stdout).unwrap();
        (
            output.status.success(),
            said + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(
        policy(&["shadow", "calm@1.0.0"]),
        (true, "calm@1.0.0 is shadow\n".into())
    );
    let canary = policy(&["canary", "100", "calm@1.0.0"]);
    assert_eq!(
        canary,
        (true, "calm@1.0.0 is canary, 100 % of viewers\n".into())
    );
    lab.policies_of(1..=20).await;
    let (ok, table) = policy(&["status"]);
    assert!(
        ok && table.contains("canary 100 %") && table.contains("100.0 %"),
        "{table}"
    );
    let (ok, status) = policy(&["status", "--json"]);
    let status: Value = serde_json::from_str(&status).unwrap();
    assert!(
        ok && status["serving"]["policies"][1]["calls"] == 20,
        "{status}"
    );
    assert_eq!(
        policy(&["retire", "calm@1.0.0"]),
        (true, "calm@1.0.0 is retired\n".into())
    );
    let quarantined = policy(&["quarantine", "bad@1.0.0", "--reason", "known bad"]);
    assert_eq!(quarantined, (true, "bad@1.0.0 is quarantined\n".into()));
    let (ok, table) = policy(&["status"]);
    assert!(
        ok && table.contains("bad@1.0.0  quarantined: known bad"),
        "{table}"
    );
    let (ok, refused) = policy(&["canary", "5", "bad@1.0.0"]);
    assert!(
        !ok && refused.contains("publish a changed version"),
        "{refused}"
    );
}
