//! The audit log as an operator reads and verifies it, from a data directory and from a running
//! host.

use crate::harness::{Host, eventually, nova};
use crate::recipes::SOON;
use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use std::path::Path;
use std::process::Output;

/// Starts a host and makes an operator's changes, so that its audit log has a few entries.
async fn changed_host() -> Host {
    let host = Host::setup().start();
    let operator = host.admin_token("operator");
    let activate = "/admin/v1/policies/timeline/1.0.0/activate";
    host.post(&operator, activate, &json!({})).await.ok(200);
    let reason = json!({"reason": "wait, no"});
    host.post(&operator, "/admin/v1/rollback", &reason)
        .await
        .ok(200);
    host
}

fn on_directory(data_dir: &Path, arguments: &[&str]) -> Output {
    let mut command = nova();
    command.arg("audit").args(arguments);
    command.arg("--data-dir").arg(data_dir).output().unwrap()
}

fn on_host(host: &Host, arguments: &[&str]) -> Output {
    let mut command = nova();
    command.arg("audit").args(arguments);
    command.args([
        "--host",
        &host.url,
        "--token",
        &host.admin_token("scientist"),
    ]);
    command.output().unwrap()
}

#[track_caller]
fn printed(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Asserts that a command failed with a single line on standard error, and returns the line.
#[track_caller]
fn refused(output: &Output) -> String {
    assert!(!output.status.success());
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    line
}

async fn on_database(data_dir: &Path, statement: &'static str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data_dir.join("nova.db"));
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(statement)
        .execute(&mut connection)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_the_same_on_the_directory_and_on_the_host_and_is_unbroken_on_both() {
    let host = changed_host().await;
    let table = printed(&on_host(&host, &["--limit", "2"]));
    assert_eq!(
        table,
        printed(&on_directory(&host.data_dir, &["--limit", "2"]))
    );
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[1].contains("rollback"), "{table}");
    assert!(lines[1].contains("wait, no"), "{table}");
    assert!(lines[2].contains("activate"), "{table}");
    let verified = printed(&on_host(&host, &["verify"]));
    let not_checked = "authentication was not checked: no audit key is configured here \
                       (NOVA_AUDIT_KEYS)";
    assert_eq!(
        verified.replace(not_checked, "6 entries authenticated"),
        printed(&on_directory(&host.data_dir, &["verify"])),
        "the key of the directory is not on the host that the command runs on"
    );
    assert!(verified.contains("unbroken"), "{verified}");
    let json: Value = serde_json::from_str(&printed(&on_host(&host, &["--json"]))).unwrap();
    let newest = &json["entries"][0];
    assert!(verified.contains(newest["hash"].as_str().unwrap()));
    assert_eq!(newest["previous_hash"], json["entries"][1]["hash"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_pages_both_ways_and_names_a_wrong_parameter() {
    let host = changed_host().await;
    let reader = host.admin_token("experimenter");
    let ids = async |query: &str| -> Vec<i64> {
        let answer = host.get(&reader, &format!("/admin/v1/audit?{query}")).await;
        let body = answer.ok(200);
        let entries = body["entries"].as_array().unwrap();
        entries
            .iter()
            .map(|entry| entry["id"].as_i64().unwrap())
            .collect()
    };
    let newest = ids("limit=1").await[0];
    assert_eq!(
        ids(&format!("before={newest}&limit=2")).await,
        [newest - 1, newest - 2]
    );
    assert_eq!(ids("after=0&limit=2").await, [1, 2]);
    assert_eq!(ids(&format!("after={newest}")).await, [0_i64; 0]);
    for (query, field) in [
        ("before=x", "before"),
        ("after=", "after"),
        ("before=9&after=1", "after"),
    ] {
        let answer = host.get(&reader, &format!("/admin/v1/audit?{query}")).await;
        assert_eq!(answer.problem(400), [field]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_changed_directly_in_the_database_is_named_with_the_remedy() {
    let host = changed_host().await;
    on_database(
        &host.data_dir,
        "DROP TRIGGER audit_is_not_changed; UPDATE audit SET actor = 'somebody' WHERE id = 2",
    )
    .await;
    for output in [
        on_host(&host, &["verify"]),
        on_directory(&host.data_dir, &["verify"]),
    ] {
        let line = refused(&output);
        assert!(line.contains("entry 2"), "{line}");
        assert!(line.contains("backup"), "{line}");
    }
    printed(&on_directory(&host.data_dir, &[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_newest_entries_are_detected_also_if_the_revision_was_put_back() {
    let host = changed_host().await;
    let read: Value = serde_json::from_str(&printed(&on_directory(
        &host.data_dir,
        &["verify", "--json"],
    )))
    .unwrap();
    let head = read["head"].as_str().unwrap();
    let operator = host.admin_token("operator");
    let flag = "/admin/v1/flags/enable_caching";
    host.put(&operator, flag, &json!({"enabled": false}))
        .await
        .ok(200);
    printed(&on_directory(
        &host.data_dir,
        &["verify", "--expect-head", head],
    ));
    on_database(
        &host.data_dir,
        "DROP TRIGGER audit_is_not_removed; DELETE FROM audit WHERE id > (SELECT max(id) - 2 FROM audit)",
    )
    .await;
    for output in [
        on_host(&host, &["verify"]),
        on_directory(&host.data_dir, &["verify"]),
    ] {
        let line = refused(&output);
        assert!(line.contains("newest entries"), "{line}");
    }
    on_database(
        &host.data_dir,
        "UPDATE sqlite_sequence SET seq = (SELECT max(id) FROM audit) WHERE name = 'audit'",
    )
    .await;
    for output in [
        on_host(&host, &["verify"]),
        on_directory(&host.data_dir, &["verify"]),
    ] {
        let line = refused(&output);
        assert!(line.contains("the host read entry"), "{line}");
    }
    let is_broken = || async { host.metric("nova_feed_audit_log_broken").await == 1.0 };
    eventually(SOON, "the alert is raised", is_broken).await;
    let line = refused(&on_directory(
        &host.data_dir,
        &["verify", "--expect-head", head],
    ));
    assert!(line.contains("cut off"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_head_is_printed_remembered_and_authenticated() {
    let host = changed_host().await;
    let operator = host.admin_token("operator");
    let newest = host.get(&operator, "/admin/v1/audit?limit=1").await.ok(200);
    let newest = &newest["entries"][0];
    let (id, hash) = (&newest["id"], newest["hash"].as_str().unwrap());
    let line = printed(&on_host(&host, &["head"]));
    assert_eq!(line, format!("{id} {hash}\n"));
    assert_eq!(line, printed(&on_directory(&host.data_dir, &["head"])));
    let json: Value = serde_json::from_str(&printed(&on_host(&host, &["head", "--json"]))).unwrap();
    assert_eq!(json, json!({"revision": id, "hash": hash}));
    let remembers = || async {
        let answer = host.get(&operator, "/admin/v1/audit/head").await.ok(200);
        assert_eq!(answer["finding"], Value::Null);
        answer["remembered"]["hash"] == hash
    };
    eventually(SOON, "the host reads the log", remembers).await;
    let series = format!("nova_feed_audit_head_info{{head=\"{hash}\"}}");
    let shown = || async { host.metric(&series).await == id.as_f64().unwrap() };
    eventually(SOON, "the metric has the head", shown).await;
    let verified = printed(&on_directory(&host.data_dir, &["verify"]));
    assert!(
        verified.contains(&format!("{id} entries authenticated")),
        "{verified}"
    );
    std::fs::remove_file(host.data_dir.join("audit.key")).unwrap();
    let verified = printed(&on_directory(&host.data_dir, &["verify"]));
    assert!(verified.contains("was not checked"), "{verified}");
}

#[test]
fn verifying_a_missing_directory_fails_and_does_not_create_it() {
    let parent = tempfile::tempdir().unwrap();
    let data_dir = parent.path().join("nowhere");
    let line = refused(&on_directory(&data_dir, &["verify"]));
    assert!(line.contains("--data-dir"), "{line}");
    assert!(!data_dir.exists());
}
