//! Recorded rankings: the rankings that a host records, their bit-for-bit replay on the same
//! host or elsewhere, and replays under another policy.

use crate::harness::{Host, Setup, eventually, guest, manifest, nova, post_ids};
use crate::recipes::{AMPLE, SOON, calm, patient_setup, with_params};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection};
use std::path::Path;
use std::process::Output;

/// A setup that records every ranking and serves none from a cache.
fn recording_setup() -> Setup {
    patient_setup()
        .variable("NOVA_RECORD_SAMPLE_RATIO", "1")
        .variable("NOVA_ENABLE_CACHING", "false")
}

async fn written(host: &Host) -> f64 {
    host.metric("nova_feed_records_total{outcome=\"written\"}")
        .await
}

async fn wait_for_records(host: &Host, records: usize) {
    eventually(SOON, "the records are written", || async {
        written(host).await >= records as f64
    })
    .await;
}

fn replay(arguments: &[&str], data_dir: Option<&Path>) -> Output {
    let mut command = nova();
    command.args(["policy", "replay", "--json"]).args(arguments);
    if let Some(data_dir) = data_dir {
        command.arg("--data-dir").arg(data_dir);
    }
    command.output().unwrap()
}

#[track_caller]
fn report(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        !stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&stdout).unwrap()
}

#[track_caller]
fn assert_exact(output: &Output, records: u64) -> Value {
    let report = report(output);
    assert!(output.status.success(), "{report}");
    assert_eq!(
        (&report["check"]["checked"], &report["check"]["exact"]),
        (&json!(records), &json!(records)),
        "{report}"
    );
    report
}

#[tokio::test]
async fn served_rankings_replay_bit_for_bit_also_under_an_experiment() {
    let host = recording_setup().start();
    let operator = host.operator();
    let experiment = json!({"seed": "s", "variations": [
        {"key": "control", "weight": 0.5, "policy": "baseline@1.0.0"},
        {"key": "fresh", "weight": 0.5, "policy": "baseline@1.0.0", "params": {"score": {"w_freshness": 0.6}}}]});
    let path = "/admin/v1/experiments/recency";
    host.put(&operator.token, path, &experiment).await.ok(201);
    host.post(&operator.token, &format!("{path}/start"), &json!({}))
        .await
        .ok(200);
    for viewer in 1..=20 {
        host.feed(viewer).await;
    }
    operator.activate("decay-diversity@1.0.0").await.ok(200);
    host.post(&operator.token, &format!("{path}/stop"), &json!({}))
        .await
        .ok(200);
    for viewer in 1..=5 {
        host.feed(viewer).await;
    }
    wait_for_records(&host, 25).await;
    // Replay works while the host runs.
    assert_exact(&replay(&[], Some(&host.data_dir)), 25);
}

#[tokio::test]
async fn an_exported_file_replays_an_uploaded_policy_without_a_data_directory() {
    let mut host = recording_setup().start();
    let modules = [("upside_down.wasm", guest("upside_down.wasm"))];
    let text = manifest("upside-down", "1.0.0", "score", "upside_down.wasm") + AMPLE;
    host.operator().publish_and_activate(&text, &modules).await;
    let shown = post_ids(&host.feed(7).await);
    wait_for_records(&host, 1).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("week.records");
    let file = file.to_str().unwrap();
    let exported = replay(&["--export", file], Some(&host.data_dir));
    assert_eq!(report(&exported)["records"], 1);
    assert!(host.terminate());
    std::fs::remove_dir_all(&host.data_dir).unwrap();

    let against = ["--records", file, "baseline@1.0.0", "upside-down@1.0.0"];
    let report = assert_exact(&replay(&against, None), 1);
    let [other, same] = [&report["policies"][0], &report["policies"][1]];
    assert_eq!(same["fuel"], report["check"]["fuel"]);
    assert!(other["fuel"]["p50"].as_f64().unwrap() > 0.0, "{other}");
    assert_eq!(same["comparison"]["overlap"]["mean"], 1.0);
    assert_eq!(same["comparison"]["kendall_tau"]["mean"], 1.0);
    assert_eq!(same["most_moved"], json!([]));
    let page = &other["most_moved"][0];
    let before: Vec<u64> = page["before"]
        .as_array()
        .unwrap()
        .iter()
        .map(|post| post["post_id"].as_u64().unwrap())
        .collect();
    assert_eq!(before, shown);
    assert!(other["comparison"]["kendall_tau"]["mean"].as_f64().unwrap() < 0.5);

    // `policy bench` can measure a policy on the recorded candidates.
    let module = elsewhere.path().join("upside_down.wasm");
    std::fs::write(&module, guest("upside_down.wasm")).unwrap();
    let mut bench = nova();
    bench.args([
        "policy",
        "bench",
        "--json",
        "--calls",
        "2",
        "--records",
        file,
    ]);
    let measured: Value =
        serde_json::from_slice(&bench.arg(&module).output().unwrap().stdout).unwrap();
    assert_eq!(measured["source"], "recorded");
    let candidates = measured["report"]["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 1, "{candidates:?}");
    let score = &measured["report"]["sizes"][0]["score"]["policy"];
    assert_eq!(score["candidates"], candidates[0]);
    assert!(score["fuel"].as_u64().unwrap() > 0, "{score}");
}

/// A replay check reuses its instances. If a reused instance gives another result, that is not
/// counted against a host that served from fresh instances.
#[tokio::test]
async fn a_policy_that_differs_only_in_a_reused_instance_replays_as_it_was_served() {
    const FEEDS: u64 = 520;
    let host = recording_setup().start();
    let modules = [("turns.wasm", guest("turns_after_500_calls.wasm"))];
    let text = manifest("turns", "1.0.0", "score", "turns.wasm") + AMPLE;
    host.operator().publish_and_activate(&text, &modules).await;
    for viewer in 1..=FEEDS {
        assert_eq!(host.feed(viewer).await["served_by"], "policy");
    }
    wait_for_records(&host, FEEDS as usize).await;
    assert_exact(&replay(&["--threads", "1"], Some(&host.data_dir)), FEEDS);
}

#[tokio::test]
async fn rankings_of_a_failing_policy_are_recorded_regardless_of_the_sample_ratio() {
    let host = patient_setup()
        .variable("NOVA_RECORD_SAMPLE_RATIO", "0")
        .start();
    let operator = host.operator();
    operator
        .publish_and_activate(&calm("calm", "1.0.0"), &[])
        .await;
    let text = manifest("picky", "1.0.0", "score", "misbehaves_after.wasm") + AMPLE;
    operator
        .publish_and_activate(
            &with_params(&text, "score", "{ victim = 7 }"),
            &[("misbehaves_after.wasm", guest("misbehaves_after.wasm"))],
        )
        .await;
    host.feed(8).await;
    assert_eq!(host.feed(7).await["served_by"], "last_good");
    wait_for_records(&host, 1).await;
    // The check covers the result of the last good policy. The failures of the failing policy
    // show only by running it.
    let output = replay(&["--failures", "picky@1.0.0"], Some(&host.data_dir));
    let report = assert_exact(&output, 1);
    assert_eq!(report["policies"][0]["failures"], json!({ "trap": 1 }));
    assert_eq!(written(&host).await, 1.0);
}

#[tokio::test]
async fn configured_viewers_are_recorded_and_the_setting_reloads() {
    let config = |viewer: u64| format!("[records]\nsample_ratio = 0\nviewers = [{viewer}]\n");
    let host = patient_setup()
        .variable("NOVA_ENABLE_CACHING", "false")
        .config(&config(7))
        .start();
    host.feed(8).await;
    host.feed(7).await;
    wait_for_records(&host, 1).await;
    std::fs::write(&host.config_path, config(8)).unwrap();
    eventually(SOON, "viewer 8 is recorded", || async {
        host.feed(8).await;
        written(&host).await >= 2.0
    })
    .await;
    let report = report(&replay(&["--user", "7"], Some(&host.data_dir)));
    assert_eq!(report["records"]["read"], 1);
}

#[tokio::test]
async fn records_are_bounded_and_the_newest_are_kept() {
    // Three bundled modules take about 50 KiB, and a record of this community about 10 KiB.
    let bytes_max = 200_000;
    let host = recording_setup()
        .variable("NOVA_RECORD_BYTES_MAX", &bytes_max.to_string())
        .start();
    for viewer in 1..=60 {
        host.feed(viewer).await;
    }
    wait_for_records(&host, 60).await;
    eventually(SOON, "old records are gone", || async {
        host.metric("nova_feed_records_bytes").await <= f64::from(bytes_max)
    })
    .await;
    let newest = report(&replay(&["--user", "60"], Some(&host.data_dir)));
    assert_eq!(newest["check"]["exact"], 1);
    let kept = report(&replay(&[], Some(&host.data_dir)));
    assert!(kept["records"]["read"].as_u64().unwrap() < 60);
    assert!(
        !replay(&["--user", "1"], Some(&host.data_dir))
            .status
            .success()
    );
}

/// Changes the records of a host that is not running.
async fn tamper(data_dir: &Path, sql: &'static str) {
    let file = data_dir.join("records/records.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut connection = options.connect().await.unwrap();
    let done = sqlx::query(sql).execute(&mut connection).await.unwrap();
    assert_eq!(done.rows_affected(), 1);
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_record_is_skipped_and_counted_and_a_changed_module_is_not_run() {
    let mut host = recording_setup().start();
    for viewer in 1..=5 {
        host.feed(viewer).await;
    }
    wait_for_records(&host, 5).await;
    assert!(host.terminate());
    let data_dir = &host.data_dir;
    tamper(
        data_dir,
        "UPDATE records SET record = substr(record, 1, 200) WHERE user_id = 1",
    )
    .await;
    tamper(
        data_dir,
        "UPDATE records SET record = x'' WHERE user_id = 2",
    )
    .await;
    tamper(
        data_dir,
        "UPDATE records SET record = substr(record, 1, 99) || x'00FF00' || substr(record, 103) WHERE user_id = 3",
    )
    .await;
    let found = assert_exact(&replay(&[], Some(data_dir)), 2);
    let skipped = found["records"]["skipped"].as_object().unwrap();
    let count: u64 = skipped.values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!((count, found["records"]["read"].as_u64()), (3, Some(5)));

    // The registry still has the intact module, but an exported file has only its own copy.
    let alone = data_dir.join("alone.records");
    let alone = alone.to_str().unwrap();
    tamper(
        data_dir,
        "UPDATE modules SET bytes = x'0061736d' WHERE digest = (SELECT json_extract(spec, '$.stages.score.module') FROM policies)",
    )
    .await;
    assert_exact(&replay(&[], Some(data_dir)), 2);
    assert!(
        replay(&["--export", alone], Some(data_dir))
            .status
            .success()
    );
    let output = replay(&["--records", alone], None);
    assert!(!output.status.success());
    assert_eq!(
        report(&output)["check"]["unavailable"],
        json!({ "baseline@1.0.0": 2 })
    );
}

#[tokio::test]
async fn the_report_is_a_self_contained_page_that_names_the_posts_that_moved() {
    let host = recording_setup().start();
    for viewer in 1..=10 {
        host.feed(viewer).await;
    }
    wait_for_records(&host, 10).await;
    let directory = tempfile::tempdir().unwrap();
    let module = directory.path().join("upside<down>.wasm");
    std::fs::write(&module, guest("upside_down.wasm")).unwrap();
    let page = directory.path().join("report.html");
    let arguments = [
        "timeline@1.0.0",
        module.to_str().unwrap(),
        "--html",
        page.to_str().unwrap(),
    ];
    assert_exact(&replay(&arguments, Some(&host.data_dir)), 10);
    let html = std::fs::read_to_string(&page).unwrap();
    for foreign in [
        "http:",
        "https:",
        "src=",
        "href=",
        "@import",
        "<script",
        "upside<down>",
    ] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    for part in [
        "<svg",
        "timeline@1.0.0",
        "Kendall",
        "Herfindahl",
        "<details open>",
    ] {
        assert!(html.contains(part), "{part}");
    }
    // Without `--json`, the command prints a table.
    let output = nova()
        .args(["policy", "replay", "timeline@1.0.0", "--data-dir"])
        .arg(&host.data_dir)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("10 of 10 rankings as they were served"),
        "{text}"
    );
    assert!(text.contains("Kendall's τ"), "{text}");
}

#[tokio::test]
async fn a_replay_without_records_says_what_to_do() {
    let host = patient_setup()
        .variable("NOVA_RECORD_SAMPLE_RATIO", "0")
        .start();
    // Ample limits, because on a busy machine the policy could otherwise fail, and failures are
    // recorded.
    let ample = calm("ample", "1.0.0");
    host.operator().publish_and_activate(&ample, &[]).await;
    host.feed(7).await;
    for (arguments, told) in [
        (vec![], "NOVA_RECORD_SAMPLE_RATIO"),
        (vec!["--records", "nowhere.records"], "--export"),
    ] {
        let data_dir = arguments.is_empty().then_some(host.data_dir.as_path());
        let output = replay(&arguments, data_dir);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && stderr.contains(told),
            "{stderr}"
        );
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
}
