//! Conformance of the two store sets. For the same community, both must give the same
//! candidates, counters, trending posts, suggestions, seen posts and exposures.

use crate::harness::{Community, Host, event, eventually};
use crate::services::Stack;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

/// Longest time that a host may take until an event is counted.
const COUNTED_WITHIN: Duration = Duration::from_secs(30);

/// Two hosts with the same rows, one on each store set.
struct Both {
    embedded: Host,
    real: Host,
}

impl Both {
    async fn with(community: impl Fn() -> Community) -> Option<(Self, Stack)> {
        let stack = Stack::migrated().await?;
        let files = community();
        let start = |stack: Option<&Stack>| {
            let setup = Host::setup().variable("NOVA_RATE_LIMIT", "off");
            let setup = match stack {
                Some(stack) => setup.stack(stack),
                None => setup,
            };
            setup.import(files.path()).start()
        };
        let both = Self {
            embedded: start(None),
            real: start(Some(&stack)),
        };
        Some((both, stack))
    }

    async fn get_both(&self, path: &str) -> (Value, Value) {
        let operator = |host: &Host| host.admin_token("operator");
        let (embedded, real) = (
            self.embedded.get(&operator(&self.embedded), path).await,
            self.real.get(&operator(&self.real), path).await,
        );
        (embedded.body, real.body)
    }
}

/// Returns post → everything in a ranking that does not depend on the time of the request.
fn by_post(posts: &[Value]) -> BTreeMap<u64, Value> {
    let timeless = |post: &Value| {
        let mut post = post.clone();
        // The score depends on the age of the post, and the two hosts were not asked at the same
        // time.
        post["score"] = Value::Null;
        post
    };
    posts
        .iter()
        .map(|post| (post["post_id"].as_u64().unwrap(), timeless(post)))
        .collect()
}

async fn same_feeds(both: &Both, viewers: &[u64]) {
    for &viewer in viewers {
        for algo in ["ch", "timeline"] {
            let embedded = both.embedded.whole_feed(viewer, algo).await;
            let real = both.real.whole_feed(viewer, algo).await;
            assert_eq!(
                by_post(&real),
                by_post(&embedded),
                "viewer {viewer}, {algo}"
            );
        }
    }
}

async fn same_discoveries(both: &Both, viewers: &[u64]) {
    for window in ["1h", "24h", "7d"] {
        let path = format!("/api/v1/feed/trending?window={window}");
        let (embedded, real) = both.get_both(&path).await;
        assert_eq!(real["posts"], embedded["posts"], "{window}");
        assert_eq!(real["count"], embedded["count"], "{window}");
    }
    for &viewer in viewers {
        let path = "/api/v1/discover/suggested-users?limit=50";
        let ask = async |host: &Host| host.get(&host.viewer_token(viewer), path).await.ok(200);
        let (embedded, real) = (ask(&both.embedded).await, ask(&both.real).await);
        assert_eq!(real["users"], embedded["users"], "viewer {viewer}");
    }
}

async fn counted(host: &Host, post: u64, counter: &str, at_least: u64) {
    let operator = host.admin_token("operator");
    eventually(COUNTED_WITHIN, "events are counted", async || {
        let metrics = host.post_metrics(&operator, post).await;
        metrics[counter].as_u64().unwrap() >= at_least
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_store_sets_return_the_same_for_an_imported_community() {
    let Some((both, _stack)) = Both::with(Community::small).await else {
        return;
    };
    let viewers = [1, 2, 7, 30, 59, 60, 61, 9_999];
    same_feeds(&both, &viewers).await;
    same_discoveries(&both, &viewers).await;
    for post in [1, 3, 15, 240] {
        let (embedded, real) = both.get_both(&format!("/debug/post/{post}/metrics")).await;
        assert_eq!(real, embedded, "post {post}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_store_sets_count_the_same_events_once_and_remember_seen_posts() {
    let Some((both, _stack)) = Both::with(Community::small).await else {
        return;
    };
    let mut events = Vec::new();
    for post in 200..240_u64 {
        let author = (post - 1) % 30 + 1;
        events.push(event(post, author, "impression", 5));
        if post % 2 == 0 {
            events.push(event(post, author, "view", 4));
        }
        if post % 5 == 0 {
            events.push(event(post, author, "like", 3));
            events.push(event(post, author, "share", 3));
        }
    }
    events.push(
        json!({"dwell_ms": 1_500, "event_time": chrono::Utc::now().to_rfc3339(), "post_id": 239,
        "author_id": 29, "action": "dwell", "device": "ios", "app_ver": "1.0.0"}),
    );
    for host in [&both.embedded, &both.real] {
        let first = host.send_events(7, &events).await.ok(202);
        assert_eq!(first["deduped"], 0);
        // Send the batch again, like a client that received no response.
        host.send_events(7, &events).await.ok(202);
        counted(host, 239, "dwell_ms_sum", 1_500).await;
        counted(host, 235, "shares", 1).await;
    }
    for post in 200..240 {
        let (embedded, real) = both.get_both(&format!("/debug/post/{post}/metrics")).await;
        assert_eq!(real, embedded, "post {post}");
    }
    // Cached lists may be up to one TTL old, but these two feeds are ranked now.
    same_feeds(&both, &[7, 8]).await;
    let seen = both.real.feed(7).await;
    let shown = crate::harness::post_ids(&seen);
    assert!(
        shown.iter().all(|post| !(200..240).contains(post)),
        "seen posts are shown: {shown:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn both_store_sets_record_an_experiments_exposures_once_for_each_ranking() {
    let Some((both, _stack)) = Both::with(Community::small).await else {
        return;
    };
    let experiment = json!({"seed": "s", "variations": [
        {"key": "a", "weight": 0.5, "policy": "baseline@1.0.0"},
        {"key": "b", "weight": 0.5, "policy": "timeline@1.0.0"}]});
    let mut viewers = Vec::new();
    for host in [&both.embedded, &both.real] {
        let operator = host.admin_token("experimenter");
        host.put(&operator, "/admin/v1/experiments/e", &experiment)
            .await
            .ok(201);
        host.post(&operator, "/admin/v1/experiments/e/start", &json!({}))
            .await
            .ok(200);
        // Usually one ranking per viewer. If a Redis lookup takes too long, the repeated request
        // is ranked again.
        let mut rankings = HashSet::new();
        for viewer in 1..=40 {
            for _ in 0..2 {
                let feed = host.feed(viewer).await;
                rankings.insert(feed["ranking_id"].as_str().unwrap().to_owned());
            }
        }
        let path = "/admin/v1/experiments/e/results";
        eventually(COUNTED_WITHIN, "every ranking is recorded", async || {
            let answer = host.get(&operator, path).await.ok(200);
            let exposures: u64 = counts(&answer, "exposures").iter().map(|(_, n)| n).sum();
            assert!(exposures <= rankings.len() as u64, "{answer}");
            exposures == rankings.len() as u64
        })
        .await;
        viewers.push(counts(&host.get(&operator, path).await.ok(200), "viewers"));
    }
    assert_eq!(viewers[0].iter().map(|(_, n)| n).sum::<u64>(), 40);
    assert_eq!(viewers[0], viewers[1]);
}

/// Returns (variation, value of the field `of`) from an experiment's results.
fn counts(results: &Value, of: &str) -> Vec<(String, u64)> {
    let variations = results["variations"].as_array().unwrap().iter();
    variations
        .map(|variation| {
            let key = variation["variation"].as_str().unwrap().to_owned();
            (key, variation[of].as_u64().unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_store_sets_return_the_same_for_a_real_community() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/quantum-se");
    if !path.is_dir() {
        eprintln!("skipped the real community, because its data set is not on this machine");
        return;
    }
    let Some((both, _stack)) = Both::with(|| moved_to_now(&path)).await else {
        return;
    };
    let viewers: Vec<u64> = (1..=3_460).step_by(173).collect();
    same_feeds(&both, &viewers).await;
    same_discoveries(&both, &viewers).await;
}

const FILES: [&str; 5] = [
    "users.csv",
    "posts.csv",
    "follows.csv",
    "comments.csv",
    "likes.csv",
];

/// Returns the files with all times moved so that the newest time is now. Two separate imports
/// with `--shift-to-now` would each use their own current time.
fn moved_to_now(directory: &Path) -> Community {
    let texts = FILES.map(|file| std::fs::read_to_string(directory.join(file)).unwrap());
    let time = |field: &str| chrono::DateTime::parse_from_rfc3339(field).ok();
    let newest = texts
        .iter()
        .flat_map(|text| text.lines().flat_map(|line| line.split(',')))
        .filter_map(time)
        .max()
        .unwrap();
    let by = chrono::Utc::now().signed_duration_since(newest);
    let moved = |text: &str| {
        let line = |line: &str| {
            let fields = line
                .split(',')
                .map(|field| time(field).map_or(field.to_owned(), |at| (at + by).to_rfc3339()));
            fields.collect::<Vec<_>>().join(",")
        };
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    };
    let files: Vec<(&str, String)> = FILES
        .into_iter()
        .zip(texts.iter().map(|text| moved(text)))
        .collect();
    Community::of(&files)
}
