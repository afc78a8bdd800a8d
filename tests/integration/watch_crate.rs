//! The command `nova serve --watch`: viewers get each edit as soon as it is saved, unless it
//! does not build.

use crate::author_loop::{complaint, make, nova_in};
use crate::harness::{Host, eventually, post_ids};
use crate::recipes::{label, patient_setup};
use std::path::Path;
use std::time::Duration;

/// Time limit for a build; the first one also compiles the dependencies of the SDK.
const BUILT: Duration = Duration::from_secs(180);

/// Saves a file with one piece of its text replaced.
fn edit(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

async fn serves(host: &Host, policy: &str) {
    eventually(BUILT, policy, || async {
        label(&host.feed(7).await["policy"]) == policy
    })
    .await;
}

async fn says(host: &Host, words: &str) {
    eventually(BUILT, words, || async { host.log().contains(words) }).await;
}

#[tokio::test]
async fn a_saved_edit_is_served_and_reported_unless_it_does_not_compile() {
    let desk = tempfile::tempdir().unwrap();
    make(desk.path(), "watched", "score");
    let directory = desk.path().join("watched");
    let source = directory.join("src/lib.rs");
    let manifest = directory.join("policy.toml");
    // A machine under test occasionally misses a deadline of 20 ms.
    edit(&manifest, "deadline_ms = 20", "deadline_ms = 1000");
    let host = patient_setup()
        .serve_argument("--watch")
        .serve_argument(directory.to_str().unwrap())
        .serve_argument("--watch-user")
        .serve_argument("7")
        .start();
    serves(&host, "watched@0.1.0-dev.1").await;
    says(&host, "viewer 7 now sees").await;
    let newest_first = post_ids(&host.feed(7).await);

    edit(&source, "let freshness = ", "let freshness = 1.0 - ");
    serves(&host, "watched@0.1.0-dev.2").await;
    says(&host, "watched@0.1.0-dev.2 is active, ").await;
    let oldest_first = post_ids(&host.feed(7).await);
    assert_ne!(oldest_first, newest_first);

    edit(&source, "let freshness = 1.0 - ", "let freshness == ");
    says(&host, "watched@0.1.0-dev.2 goes on serving: ").await;
    says(&host, "expected").await;
    assert_eq!(post_ids(&host.feed(7).await), oldest_first);

    edit(&source, "let freshness == ", "let freshness = ");
    serves(&host, "watched@0.1.0-dev.3").await;
    assert_eq!(post_ids(&host.feed(7).await), newest_first);

    // Changes to parameters and limits alone need no compilation.
    let builds = host.log().matches("watch: watched: compiling").count();
    edit(
        &manifest,
        "module = \"watched.wasm\"",
        "module = \"watched.wasm\"\nparams = { like_weight = 10.0 }",
    );
    serves(&host, "watched@0.1.0-dev.4").await;
    assert_eq!(
        host.log().matches("watch: watched: compiling").count(),
        builds
    );
    edit(&manifest, "like_weight = 10.0", "like_weight = 1e300");
    says(&host, "score.params.like_weight").await;
    serves(&host, "watched@0.1.0-dev.4").await;

    // The watch must not write into the author's directory.
    assert!(
        !std::fs::read_to_string(&manifest)
            .unwrap()
            .contains("follow")
    );
    assert!(!directory.join("watched.wasm").exists());
}

#[test]
fn watching_without_a_policy_crate_or_with_a_shared_registry_is_refused() {
    let desk = tempfile::tempdir().unwrap();
    make(desk.path(), "watched", "dedup");
    let why = complaint(&mut nova_in(desk.path(), &["serve", "--watch", "absent"]));
    assert!(why.contains("nova policy new"), "{why}");
    let mut shared = nova_in(desk.path(), &["serve", "--watch", "watched"]);
    for name in ["POSTGRES_URL", "CLICKHOUSE_URL", "REDIS_URL"] {
        shared.env(name, "http://127.0.0.1:1");
    }
    let why = complaint(shared.env("KAFKA_BROKERS", "127.0.0.1:1"));
    assert!(why.contains("embedded"), "{why}");
}
