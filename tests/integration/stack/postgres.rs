//! PostgreSQL as the program uses it: the schema, the registry shared by the hosts, and the
//! service that remains while PostgreSQL is unavailable.

use crate::fault_proxy::{Fault, FaultProxy};
use crate::harness::{Community, Host, Setup, eventually};
use crate::services::Stack;
use nova_stores::breaker::{Breaker, Circuit};
use nova_stores::ports::RelationalStore as _;
use nova_stores::postgres::PostgresStore;
use serde_json::{Value, json};
use std::process::Output;
use std::time::{Duration, Instant};

/// Longest time that a host on a busy machine may take to notice a change made on another host.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

fn on(stack: &Stack) -> Setup {
    Host::setup()
        .stack(stack)
        .variable("NOVA_RATE_LIMIT", "off")
}

fn migrate(stack: &Stack, arguments: &[&str]) -> Output {
    stack
        .nova()
        .arg("migrate")
        .args(arguments)
        .output()
        .unwrap()
}

async fn activate(host: &Host, policy: &str) -> u16 {
    let path = format!("/admin/v1/policies/{}/activate", policy.replace('@', "/"));
    let operator = host.admin_token("operator");
    host.post(&operator, &path, &json!({})).await.status
}

async fn active(host: &Host) -> Value {
    let scientist = host.admin_token("scientist");
    let policies = host.get(&scientist, "/admin/v1/policies").await.ok(200);
    policies["active"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_migration_changes_nothing_and_a_newer_schema_is_refused_in_one_line() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let second: Value = serde_json::from_slice(&migrate(&stack, &["--json"]).stdout).unwrap();
    assert_eq!(second["stores"][0]["store"], "postgres", "{second}");
    for store in second["stores"].as_array().unwrap() {
        assert_eq!(store["applied"], json!([]), "{second}");
    }
    let text = String::from_utf8(migrate(&stack, &[]).stdout).unwrap();
    assert!(text.contains("postgres: up to date"), "{text}");
    stack
        .postgres("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', true, '', 0)")
        .await;
    let refused = migrate(&stack, &[]);
    assert!(!refused.status.success());
    let line = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    assert!(line.contains("use the newer nova"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn importing_twice_changes_nothing_and_a_bad_row_is_named_by_its_line() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let (community, data_dir) = (Community::small(), tempfile::tempdir().unwrap());
    let import = |files: &Community| {
        let mut command = stack.nova();
        command.args(["import", "--json"]).arg(files.path());
        command.arg("--data-dir").arg(data_dir.path());
        command.output().unwrap()
    };
    let rows_new = |output: &Output| -> Vec<u64> {
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        let files = summary["files"].as_array().unwrap();
        files
            .iter()
            .map(|file| file["rows_new"].as_u64().unwrap())
            .collect()
    };
    assert!(rows_new(&import(&community)).iter().all(|new| *new > 0));
    let events = stack.clickhouse("SELECT count() AS n FROM events").await;
    assert!(rows_new(&import(&community)).iter().all(|new| *new == 0));
    assert_eq!(
        stack.clickhouse("SELECT count() AS n FROM events").await,
        events
    );
    let likes =
        "like_id,post_id,user_id,created_at\n9001,1,1,2026-01-01T00:00:00Z\n9002,1,1,never\n";
    let bad = import(&Community::of(&[("likes.csv", likes.to_owned())]));
    let line = String::from_utf8(bad.stderr).unwrap();
    assert!(!bad.status.success());
    assert!(line.contains("likes.csv:3: created_at"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_and_a_rollback_reach_the_other_host() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let (here, there) = (on(&stack).start(), on(&stack).start());
    assert_eq!(activate(&here, "timeline@1.0.0").await, 200);
    eventually(
        NOTICED_WITHIN,
        "the activation reaches the other host",
        async || active(&there).await == "timeline@1.0.0",
    )
    .await;
    let operator = there.admin_token("operator");
    there
        .post(&operator, "/admin/v1/rollback", &json!({"reason": "test"}))
        .await
        .ok(200);
    eventually(
        NOTICED_WITHIN,
        "the rollback reaches the first host",
        async || active(&here).await == "baseline@1.0.0",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_start_together_on_an_empty_registry_all_start() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let starting = (0..3).map(|_| {
        let setup = on(&stack);
        tokio::task::spawn_blocking(move || setup.start())
    });
    for host in futures::future::join_all(starting).await {
        let host = host.unwrap();
        eventually(NOTICED_WITHIN, "every host is prepared", async || {
            active(&host).await == "baseline@1.0.0"
                && activate(&host, "baseline@1.0.0").await == 200
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_starts_while_postgresql_is_unavailable_serves_the_last_good_policies() {
    let Some(mut stack) = Stack::migrated().await else {
        return;
    };
    let data_dir = tempfile::tempdir().unwrap();
    let (proxy, through_proxy) = FaultProxy::in_front_of(&stack.postgres_url).await;
    let direct = std::mem::replace(&mut stack.postgres_url, through_proxy);
    let start = || on(&stack).data_dir(data_dir.path()).start();
    let mut first = on(&stack)
        .data_dir(data_dir.path())
        .community(Community::small())
        .start();
    assert_eq!(activate(&first, "timeline@1.0.0").await, 200);
    assert!(first.terminate());
    for fault in [Fault::Refuse, Fault::Silent] {
        proxy.set(fault);
        let mut host = start();
        let feed = host.feed(1).await;
        assert_eq!(feed["policy"]["name"], "timeline", "{fault:?}: {feed}");
        assert_eq!(feed["served_by"], "policy", "{fault:?}: {feed}");
        assert_eq!(activate(&host, "baseline@1.0.0").await, 503, "{fault:?}");
        assert_eq!(active(&host).await, "timeline@1.0.0");
        proxy.set(Fault::None);
        eventually(NOTICED_WITHIN, "changes are accepted again", async || {
            activate(&host, "timeline@1.0.0").await == 200
                && activate(&host, "baseline@1.0.0").await == 200
                && activate(&host, "timeline@1.0.0").await == 200
        })
        .await;
        host.kill();
    }
    stack.postgres_url = direct;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_never_read_the_registry_serves_the_baseline_and_converges() {
    let Some(mut stack) = Stack::migrated().await else {
        return;
    };
    let (proxy, through_proxy) = FaultProxy::in_front_of(&stack.postgres_url).await;
    let elsewhere = on(&stack).start();
    assert_eq!(activate(&elsewhere, "timeline@1.0.0").await, 200);
    let direct = std::mem::replace(&mut stack.postgres_url, through_proxy);
    proxy.set(Fault::Refuse);
    let host = on(&stack).start();
    assert_eq!(active(&host).await, "baseline@1.0.0");
    proxy.set(Fault::None);
    eventually(
        NOTICED_WITHIN,
        "the host serves what the registry says",
        async || active(&host).await == "timeline@1.0.0",
    )
    .await;
    stack.postgres_url = direct;
}

/// Long enough that no call of a test falls into the time after it, and short enough to wait
/// for.
const CIRCUIT_OPEN: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_millis(500);
/// A call that takes this long had no deadline. Shorter delays are explained by two busy cores.
const NO_DEADLINE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_a_retryable_error_within_the_deadline_and_has_no_lasting_effect() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let (proxy, url) = FaultProxy::in_front_of(&stack.postgres_url).await;
    for fault in [
        Fault::Refuse,
        Fault::Silent,
        Fault::ResetAfter(3),
        Fault::Garbage,
        Fault::Slow(Duration::from_secs(3)),
    ] {
        let store = PostgresStore::new(&url, 2, TIMEOUT)
            .unwrap()
            .with_breaker(Breaker::new(CIRCUIT_OPEN));
        proxy.set(Fault::None);
        store.timeline(1, 1_000_000, 10).await.unwrap();
        proxy.set(fault);
        for _ in 0..3 {
            let begun = Instant::now();
            let error = store.timeline(1, 1_000_000, 10).await.unwrap_err();
            assert!(error.retryable, "{fault:?}: {error}");
            assert!(begun.elapsed() < NO_DEADLINE, "{fault:?}");
        }
        assert_eq!(store.guard().circuit(), Circuit::Open, "{fault:?}");
        proxy.set(Fault::None);
        eventually(NOTICED_WITHIN, "the store responds again", async || {
            store.timeline(1, 1_000_000, 10).await.is_ok()
        })
        .await;
    }
}
