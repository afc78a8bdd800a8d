//! The watched policies directory: complete and valid policies are published, others are refused
//! with the reason, and the active policy is never affected.

use crate::harness::{Host, eventually, guest, manifest, nova, post_ids, shipped_module};
use crate::recipes::{AMPLE, Operator, SOON, calm, label, patient_setup, text, with_params};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use sha2::Digest as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Writes a whole policy directory at once, like `cp -r`.
fn write_policy(host: &Host, directory: &str, manifest: &str, modules: &[(&str, Vec<u8>)]) {
    write_policy_in(&host.data_dir, directory, manifest, modules);
}

fn write_policy_in(data_dir: &Path, directory: &str, manifest: &str, modules: &[(&str, Vec<u8>)]) {
    let path = data_dir.join("policies").join(directory);
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("policy.toml"), manifest).unwrap();
    for (name, bytes) in modules {
        std::fs::write(path.join(name), bytes).unwrap();
    }
}

async fn published(operator: &Operator<'_>, policy: &str) -> bool {
    operator
        .published()
        .await
        .iter()
        .any(|known| known == policy)
}

/// Returns the reasons for which a directory was refused, or an empty string if it was not.
async fn refusals(operator: &Operator<'_>, directory: &str) -> String {
    let state = operator.get("/debug/system/state").await;
    let reasons = state["refused_policies"][directory].as_array();
    reasons.map_or_else(String::new, |reasons| {
        reasons.iter().map(text).collect::<Vec<_>>().join("\n")
    })
}

#[tokio::test]
async fn a_directory_that_is_copied_in_is_published_and_can_be_activated() {
    let host = patient_setup().start();
    let operator = host.operator();
    let before = post_ids(&host.feed(7).await);
    let text = manifest("upside-down", "1.0.0", "score", "upside_down.wasm") + AMPLE;
    write_policy(
        &host,
        "any-name",
        &text,
        &[("upside_down.wasm", guest("upside_down.wasm"))],
    );
    eventually(SOON, "the directory is published", || {
        published(&operator, "upside-down@1.0.0")
    })
    .await;
    assert_eq!(operator.active().await, "baseline@1.0.0");
    assert_eq!(refusals(&operator, "any-name").await, "");

    operator.activate("upside-down@1.0.0").await.ok(200);
    let feed = host.feed(7).await;
    assert_eq!(label(&feed["policy"]), "upside-down@1.0.0");
    assert_ne!(post_ids(&feed), before);
    let audit = operator.get("/admin/v1/audit?limit=2").await;
    assert_eq!(
        (
            &audit["entries"][1]["actor"],
            &audit["entries"][1]["action"]
        ),
        (&json!("watcher"), &json!("publish"))
    );
}

#[tokio::test]
async fn a_module_that_is_still_being_written_is_published_only_when_complete() {
    let host = Host::setup().start();
    let operator = host.operator();
    let bytes = shipped_module("weighted_scorer.wasm");
    let expected = hex::encode(sha2::Sha256::digest(&bytes));
    write_policy(
        &host,
        "slow",
        &manifest("slow", "1.0.0", "score", "slow.wasm"),
        &[],
    );
    let path = host.data_dir.join("policies/slow/slow.wasm");
    let mut file = std::fs::File::create(path).unwrap();
    let mut pieces = bytes.chunks(bytes.len().div_ceil(4)).peekable();
    while let Some(piece) = pieces.next() {
        assert!(!published(&operator, "slow@1.0.0").await);
        // Longer than the time for which a directory must be unchanged before it is read. The
        // host therefore reads the partial file, and must refuse it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!published(&operator, "slow@1.0.0").await);
        file.write_all(piece).unwrap();
        file.sync_all().unwrap();
        if pieces.peek().is_some() {
            eventually(SOON, "half a module is refused", || async {
                refusals(&operator, "slow").await.contains("score.module")
            })
            .await;
        }
    }
    eventually(SOON, "the whole module is published", || {
        published(&operator, "slow@1.0.0")
    })
    .await;
    let list = operator.get("/admin/v1/policies").await;
    let entries = list["policies"].as_array().unwrap();
    let entry = entries
        .iter()
        .find(|entry| entry["name"] == "slow")
        .unwrap();
    assert_eq!(entry["stages"]["score"]["module"], expected);
    eventually(SOON, "no directory is refused any more", || async {
        refusals(&operator, "slow").await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn changed_files_under_a_published_version_are_refused_and_a_new_version_is_accepted() {
    let host = patient_setup().start();
    let operator = host.operator();
    write_policy(&host, "mine", &calm("mine", "1.0.0"), &[]);
    eventually(SOON, "1.0.0", || published(&operator, "mine@1.0.0")).await;
    operator.activate("mine@1.0.0").await.ok(200);
    let before = host.feed(7).await;

    let changed =
        |version: &str| calm("mine", version).replace("decay_per_hour = 0.0", "w_engagement = 0.0");
    write_policy(&host, "mine", &changed("1.0.0"), &[]);
    eventually(SOON, "the change is refused", || async {
        let reasons = refusals(&operator, "mine").await;
        reasons.contains("mine@1.0.0") && reasons.contains("never changes")
    })
    .await;
    let after = host.feed(7).await;
    assert_eq!(
        (&after["policy"], post_ids(&after)),
        (&before["policy"], post_ids(&before))
    );

    write_policy(&host, "mine-1.1", &changed("1.1.0"), &[]);
    eventually(SOON, "1.1.0", || published(&operator, "mine@1.1.0")).await;
    // A new version in the same directory also ends the refusal.
    write_policy(&host, "mine", &changed("1.2.0"), &[]);
    eventually(SOON, "1.2.0", || async {
        published(&operator, "mine@1.2.0").await && refusals(&operator, "mine").await.is_empty()
    })
    .await;
    assert_eq!(operator.active().await, "mine@1.0.0");
}

#[tokio::test]
async fn a_broken_directory_is_refused_until_it_is_repaired_or_removed() {
    let host = Host::setup().start();
    let operator = host.operator();
    let refused = async |directory: &str, words: &str| {
        eventually(SOON, directory, || async {
            refusals(&operator, directory).await.contains(words)
        })
        .await;
    };
    write_policy(&host, "no-toml", "name = ", &[]);
    write_policy(
        &host,
        "follower",
        &format!("follow = true\n{}", calm("follower", "1.0.0")),
        &[],
    );
    let importing = manifest("importing", "1.0.0", "score", "x.wasm");
    write_policy(
        &host,
        "importing",
        &importing,
        &[("x.wasm", guest("imports_clock.wasm"))],
    );
    let absent = manifest("absent", "1.0.0", "score", "absent.wasm");
    write_policy(&host, "absent", &absent, &[]);
    refused("no-toml", "policy.toml").await;
    refused("follower", "follow").await;
    refused("importing", "nova:host/clock").await;
    refused("absent", "absent.wasm").await;

    std::fs::remove_dir_all(host.data_dir.join("policies/importing")).unwrap();
    write_policy(
        &host,
        "absent",
        &absent,
        &[("absent.wasm", shipped_module("weighted_scorer.wasm"))],
    );
    eventually(SOON, "the repaired directory is published", || async {
        published(&operator, "absent@1.0.0").await
            && refusals(&operator, "importing").await.is_empty()
    })
    .await;
}

/// A running `nova demo`, with the values that it printed.
struct Demo {
    child: Child,
    url: String,
    data_dir: PathBuf,
    token: String,
    /// Parent of the demo's throw-away data directory.
    _temporary: tempfile::TempDir,
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Sends SIGTERM, so that the demo can remove its directory.
        let _ = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status();
        let _ = self.child.wait();
    }
}

impl Demo {
    fn start() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let log = temporary.path().join("log");
        let mut child = nova()
            .args(["demo", "--listen", "127.0.0.1:0"])
            .env("TMPDIR", temporary.path())
            .env("NOVA_RATE_LIMIT", "off")
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut said = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            said += &(line.unwrap() + "\n");
            if said.contains("Ctrl-C to stop") {
                break;
            }
        }
        let between = |from: &str, to: &str| {
            let found = said
                .split_once(from)
                .and_then(|(_, rest)| rest.split_once(to));
            let (found, _) = found.unwrap_or_else(|| {
                let log = std::fs::read_to_string(&log).unwrap();
                panic!("no {from} in the output: {said}{log}")
            });
            found.to_owned()
        };
        Self {
            url: between("export NOVA_HOST=", "\n").trim().to_owned(),
            data_dir: between("(data: ", ", deleted").into(),
            token: between("export NOVA_TOKEN=", "\n").trim().to_owned(),
            child,
            _temporary: temporary,
        }
    }

    async fn call(&self, method: Method, path: &str) -> Value {
        let request = Client::new()
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token);
        let request = request.json(&json!({ "reason": "a test" }));
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn becomes_active(&self, policy: &str) {
        eventually(SOON, policy, || async {
            self.call(Method::GET, "/admin/v1/policies").await["active"] == policy
        })
        .await;
    }
}

#[tokio::test]
async fn on_a_development_host_a_policy_that_follows_its_source_is_active_after_every_change() {
    let demo = Demo::start();
    let follower = |w_freshness: &str| {
        let text = format!("follow = true\n{}", calm("mine", "1.0.0"));
        text.replace(
            "decay_per_hour = 0.0",
            &format!("w_freshness = {w_freshness}"),
        )
    };
    write_policy_in(&demo.data_dir, "mine", &follower("0.1"), &[]);
    demo.becomes_active("mine@1.0.0-dev.1").await;
    write_policy_in(&demo.data_dir, "mine", &follower("0.2"), &[]);
    demo.becomes_active("mine@1.0.0-dev.2").await;
    // A change that cannot be admitted changes nothing, and the next valid change is followed
    // again.
    write_policy_in(&demo.data_dir, "mine", &follower("1e300"), &[]);
    eventually(SOON, "a bad change is refused", || async {
        let state = demo.call(Method::GET, "/debug/system/state").await;
        state["refused_policies"]["mine"][0]
            .as_str()
            .is_some_and(|reason| reason.contains("w_freshness"))
    })
    .await;
    let list = demo.call(Method::GET, "/admin/v1/policies").await;
    assert_eq!(list["active"], "mine@1.0.0-dev.2");
    write_policy_in(
        &demo.data_dir,
        "mine",
        &with_params(&follower("0.3"), "dedup", "{ min_results = 20 }"),
        &[],
    );
    demo.becomes_active("mine@1.0.0-dev.3").await;
    let back = demo.call(Method::POST, "/admin/v1/rollback").await;
    assert_eq!(label(&back), "mine@1.0.0-dev.2");
}
