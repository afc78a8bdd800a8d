//! What an operator needs at once takes effect on three hosts, whatever else they do: a client
//! uploads 40 MiB slowly, a Python policy compiles, and a module of an experiment cannot be read.
//! The goal is one second. The test prints the times; docs/performance.md has those of a quiet
//! machine.

use super::fleet::{BASELINE, all_serve, three_hosts};
use crate::harness::{Host, shipped_module};
use crate::languages::python_scorer;
use crate::recipes::calm;
use crate::services::Stack;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio_util::task::AbortOnDropHandle;

const TIMELINE: &str = "timeline@1.0.0";
const DIVERSITY: &str = "decay-diversity@1.0.0";
const REPETITIONS: usize = 20;
/// Longest time that a busy machine may take.
const WITHIN: Duration = Duration::from_secs(30);
const UPLOAD_BYTES: usize = 40 << 20;

/// Returns the component with a custom section, so that it has a digest of its own.
fn variant(component: &[u8], name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    let section = [&[0, length + 1, length], name.as_bytes()].concat();
    [component, &section].concat()
}

fn scorer(name: &str, version: &str) -> String {
    calm(name, version)
        .replace("builtin:weighted-scorer", "scorer.wasm")
        .replace("params = { decay_per_hour = 0.0 }\n", "")
        .replace("memory_mb = 16", "memory_mb = 64")
}

/// Sends an upload of 40 MiB that never ends, and begins again if the host ends it.
async fn trickle(address: String, token: String) {
    loop {
        let Ok(mut client) = tokio::net::TcpStream::connect(&address).await else {
            return;
        };
        let head = format!(
            "POST /admin/v1/policies HTTP/1.1\r\nhost: nova\r\nauthorization: Bearer {token}\r\n\
             content-type: multipart/form-data; boundary=b\r\ncontent-length: {UPLOAD_BYTES}\r\n\r\n\
             --b\r\ncontent-disposition: form-data; name=\"m\"; filename=\"m.wasm\"\r\n\r\n"
        );
        let mut sent = client.write_all(head.as_bytes()).await;
        while sent.is_ok() {
            sent = client.write_all(&[0; 16 << 10]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Uploads variants of a component, so that the host compiles all the time.
async fn keep_compiling(host: Arc<Host>, token: String, component: Vec<u8>) {
    for round in 0.. {
        let modules = [(
            "scorer.wasm",
            variant(&component, &format!("round {round}")),
        )];
        let manifest = scorer("compiles", &format!("1.0.{round}"));
        host.upload(&token, &manifest, &modules).await;
    }
}

struct Fleet {
    hosts: Vec<Arc<Host>>,
    tokens: Vec<String>,
}

impl Fleet {
    async fn post(&self, host: usize, path: &str, body: Value) -> Value {
        let answer = self.hosts[host].post(&self.tokens[host], path, &body).await;
        answer.ok(200)
    }

    /// Makes a change, and returns the time from its request until it holds on every host.
    async fn measure(
        &self,
        change: impl Future<Output = Value>,
        path: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Duration {
        let begun = Instant::now();
        change.await;
        let waiting = self
            .hosts
            .iter()
            .zip(&self.tokens)
            .map(async |(host, token)| {
                // A host that does not know of an experiment yet answers 404.
                while !holds(&host.get(token, path).await.body) {
                    assert!(begun.elapsed() < WITHIN, "not on every host: {path}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        futures::future::join_all(waiting).await;
        begun.elapsed()
    }

    async fn activate(&self, policy: &str) {
        let path = format!("/admin/v1/policies/{}/activate", policy.replace('@', "/"));
        self.post(0, &path, json!({})).await;
        self.measure(async { Value::Null }, POLICIES, |list| {
            list["active"] == policy
        })
        .await;
    }
}

const POLICIES: &str = "/admin/v1/policies?limit=1";

#[tokio::test(flavor = "multi_thread")]
async fn rollback_quarantine_stop_and_flags_do_not_wait_for_uploads_and_compilations() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let hosts = three_hosts(&stack).await;
    all_serve(&hosts, BASELINE, WITHIN).await;
    let fleet = Fleet {
        tokens: hosts
            .iter()
            .map(|host| host.admin_token("operator"))
            .collect(),
        hosts: hosts.into_iter().map(Arc::new).collect(),
    };
    let (component, language) = match tokio::task::block_in_place(python_scorer) {
        Some(component) => (component, "Python"),
        None => (shipped_module("weighted_scorer.wasm"), "Rust"),
    };

    // An experiment of which only the first host can read a module.
    let unreadable = variant(&shipped_module("weighted_scorer.wasm"), "unreadable");
    let upload = |name, bytes| {
        let (host, token) = (&fleet.hosts[0], &fleet.tokens[0]);
        async move {
            let modules = [("scorer.wasm", bytes)];
            let published = host.upload(token, &scorer(name, "1.0.0"), &modules).await;
            published.ok(201)
        }
    };
    upload("unreadable", unreadable.clone()).await;
    let experiment = |policy: &str| {
        json!({"coverage": 1.0, "variations": [
            {"key": "a", "weight": 0.5, "policy": policy},
            {"key": "b", "weight": 0.5, "policy": BASELINE}]})
    };
    let put = |host: usize, key: String, policy: &str| {
        let (path, body) = (format!("/admin/v1/experiments/{key}"), experiment(policy));
        let (host, token) = (fleet.hosts[host].clone(), fleet.tokens[host].clone());
        async move { host.put(&token, &path, &body).await.ok(201) }
    };
    put(0, "cannot-be-read".into(), "unreadable@1.0.0").await;
    let digest = nova_model::artifact::Digest::from_content(&unreadable);
    stack
        .postgres(&format!(
            "UPDATE policy_modules SET bytes = '\\x00' WHERE digest = '{digest}'"
        ))
        .await;
    fleet
        .post(0, "/admin/v1/experiments/cannot-be-read/start", json!({}))
        .await;

    // Every former policy is loaded everywhere before.
    for policy in [DIVERSITY, TIMELINE, BASELINE] {
        fleet.activate(policy).await;
    }
    // The two other hosts compile this policy in the background, and one of them compiles uploads.
    upload("shadow", component.clone()).await;
    fleet
        .post(0, "/admin/v1/policies/shadow/1.0.0/shadow", json!({}))
        .await;
    let _others = [
        AbortOnDropHandle::new(tokio::spawn(trickle(
            fleet.hosts[1].address().to_owned(),
            fleet.tokens[1].clone(),
        ))),
        AbortOnDropHandle::new(tokio::spawn(keep_compiling(
            fleet.hosts[2].clone(),
            fleet.tokens[2].clone(),
            component,
        ))),
    ];

    let mut took: [Vec<Duration>; 4] = Default::default();
    for round in 0..REPETITIONS {
        fleet.activate(TIMELINE).await;
        let reason = json!({"reason": "test"});
        let roll_back = fleet.post(0, "/admin/v1/rollback", reason.clone());
        let rolled_back = fleet
            .measure(roll_back, POLICIES, |list| list["active"] == BASELINE)
            .await;
        took[0].push(rolled_back);

        let path = format!("/admin/v1/policies/{}", DIVERSITY.replace('@', "/"));
        let quarantine = format!("{path}/quarantine");
        let quarantine = fleet.post(1, &quarantine, reason.clone());
        let is_out = |list: &Value| list["serving"]["out_of_service"] != json!([]);
        took[1].push(fleet.measure(quarantine, POLICIES, is_out).await);
        let lift = format!("{path}/lift");
        let lift = fleet.post(0, &lift, reason);
        fleet.measure(lift, POLICIES, |list| !is_out(list)).await;

        let key = format!("e{round}");
        let path = format!("/admin/v1/experiments/{key}");
        put(0, key, TIMELINE).await;
        let start = format!("{path}/start");
        let start = fleet.post(0, &start, json!({}));
        let in_state = |state: &'static str| move |e: &Value| e["state"] == state;
        fleet.measure(start, &path, in_state("running")).await;
        let stop = format!("{path}/stop");
        let stop = fleet.post(2, &stop, json!({}));
        took[2].push(fleet.measure(stop, &path, in_state("stopped")).await);

        let (path, enabled) = ("/admin/v1/flags/enable_caching", round % 2 == 1);
        let (host, token) = (&fleet.hosts[1], &fleet.tokens[1]);
        let body = json!({ "enabled": enabled });
        let flag = async { host.put(token, path, &body).await.ok(200) };
        let is_set = |flag: &Value| flag["enabled"] == enabled;
        took[3].push(fleet.measure(flag, path, is_set).await);
    }
    let names = ["rollback", "quarantine", "stop of an experiment", "flag"];
    for (name, took) in names.iter().zip(&took) {
        let mut took = took.clone();
        took.sort_unstable();
        let (median, slowest) = (took[REPETITIONS / 2], took[REPETITIONS - 1]);
        println!(
            "{name}: {REPETITIONS} on three hosts while a {language} policy compiles, median {median:?}, slowest {slowest:?}"
        );
    }
}
