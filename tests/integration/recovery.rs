//! Recovery: crashes at random moments, orderly stops, and a second host on the same data
//! directory.

use crate::harness::{Community, Host, event, eventually, post_ids, refusal_to_serve};
use crate::senders::{BATCH_EVENTS, Sender, batch, send_until_the_host_is_gone};
use chrono::Utc;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SENDERS: u64 = 4;
const COUNTED_WITHIN: Duration = Duration::from_secs(20);

fn start(directory: &Path) -> Host {
    Host::setup()
        .data_dir(directory)
        .variable("NOVA_RATE_LIMIT", "off")
        .start()
}

fn start_with_community(directory: &Path) -> Host {
    Community::small().import(directory, &[]);
    start(directory)
}

async fn likes(host: &Host, operator: &str) -> u64 {
    let mut sum = 0;
    for post in 1..=BATCH_EVENTS {
        sum += host.post_metrics(operator, post).await["likes"]
            .as_u64()
            .unwrap();
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_event_is_counted_exactly_once_even_after_repeated_kills() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = start_with_community(directory.path());
    let operator = host.admin_token("operator");
    let (begun, before) = (Utc::now(), likes(&host, &operator).await);
    let senders: Vec<Arc<Sender>> = (0..SENDERS).map(|_| Arc::default()).collect();
    let answered = || {
        senders
            .iter()
            .map(|sender| sender.answered.load(Ordering::SeqCst))
    };
    for _round in 0..4 {
        let at_start: u64 = answered().sum();
        let sending: Vec<_> = (100..)
            .zip(&senders)
            .map(|(user, sender)| {
                let (url, token) = (host.url.clone(), host.viewer_token(user));
                tokio::spawn(send_until_the_host_is_gone(
                    url,
                    token,
                    sender.clone(),
                    begun,
                ))
            })
            .collect();
        // Kill at a random point between the first accepted batch and many batches being
        // counted.
        eventually(COUNTED_WITHIN, "batches are accepted", async || {
            answered().sum::<u64>() > at_start
        })
        .await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..300))).await;
        host.kill();
        for sender in sending {
            sender.await.unwrap();
        }
        host = start(directory.path());
    }
    let accepted: u64 = answered().sum();
    assert!(accepted > 4, "{accepted}");
    eventually(COUNTED_WITHIN, "accepted events are counted", async || {
        likes(&host, &operator).await >= before + accepted * BATCH_EVENTS
    })
    .await;

    // Send every batch again, plus one more per sender: the batch whose response it never
    // received.
    for (user, answered) in (100..).zip(answered()) {
        for number in 0..=answered {
            let answer = host.send_events(user, &batch(begun, number)).await.ok(202);
            let deduped = answer["deduped"].as_u64().unwrap();
            if number < answered {
                assert_eq!(
                    deduped, BATCH_EVENTS,
                    "an accepted batch is no longer known"
                );
            } else {
                assert!(
                    [0, BATCH_EVENTS].contains(&deduped),
                    "half a batch was kept: {deduped}"
                );
            }
        }
    }
    let all = before + (accepted + SENDERS) * BATCH_EVENTS;
    eventually(COUNTED_WITHIN, "everything is counted", async || {
        likes(&host, &operator).await >= all
    })
    .await;
    // Check again after an orderly stop, which counts any event that may still be waiting.
    assert!(host.terminate());
    let host = start(directory.path());
    assert_eq!(likes(&host, &operator).await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_finishes_open_requests_and_loses_no_event() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = start_with_community(directory.path());
    let operator = host.admin_token("operator");
    let (begun, before) = (Utc::now(), likes(&host, &operator).await);

    // A request of which half the body has arrived when the host gets SIGTERM.
    let body = json!({"events": batch(begun, 0)}).to_string();
    let (early, late) = body.split_at(body.len() / 2);
    let head = format!(
        "POST /api/v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{early}",
        host.viewer_token(7),
        body.len()
    );
    let mut begun_request = TcpStream::connect(host.address()).await.unwrap();
    begun_request.write_all(head.as_bytes()).await.unwrap();
    eventually(COUNTED_WITHIN, "the request is being handled", async || {
        // One active request is the metrics request itself.
        host.metric("nova_feed_api_active_requests").await >= 2.0
    })
    .await;
    // A sender that continues until the host stops answering.
    let sender = Arc::<Sender>::default();
    let sending = tokio::spawn(send_until_the_host_is_gone(
        host.url.clone(),
        host.viewer_token(100),
        sender.clone(),
        begun,
    ));
    eventually(COUNTED_WITHIN, "batches are accepted", async || {
        sender.answered.load(Ordering::SeqCst) > 3
    })
    .await;

    host.begin_stop();
    let address = host.address().to_owned();
    eventually(COUNTED_WITHIN, "new connections fail", async || {
        TcpStream::connect(&address).await.is_err()
    })
    .await;
    begun_request.write_all(late.as_bytes()).await.unwrap();
    let mut answer = String::new();
    begun_request.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    assert!(
        host.wait_for_end(),
        "the exit code is not 0: {}",
        host.log()
    );
    sending.await.unwrap();

    let accepted = sender.answered.load(Ordering::SeqCst) + 1;
    let host = start(directory.path());
    let counted = likes(&host, &operator).await;
    // The sender's last batch may have been accepted although its response did not arrive.
    let possible = [accepted, accepted + 1].map(|batches| before + batches * BATCH_EVENTS);
    assert!(
        possible.contains(&counted),
        "{counted}, not one of {possible:?}"
    );
}

#[tokio::test]
async fn a_second_host_on_the_same_directory_refuses_to_start_and_the_first_keeps_serving() {
    let host = Host::with_community();
    let directory = host.data_dir.to_str().unwrap();
    let reason = refusal_to_serve(&["--data-dir", directory], &[]);
    assert!(reason.contains("another host runs on"), "{reason}");
    assert!(reason.contains(directory), "{reason}");
    host.feed(7).await;
}

#[tokio::test]
async fn seen_posts_and_repeats_are_remembered_through_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = start_with_community(directory.path());
    let stranger = 999_999;
    let shown = post_ids(&host.feed(stranger).await);
    let batch: Vec<Value> = shown
        .iter()
        .map(|&post| event(post, 1, "impression", 60))
        .collect();
    host.send_events(stranger, &batch).await.ok(202);
    host.kill();

    let host = start(directory.path());
    let again = host.feed(stranger).await;
    assert_eq!(again["total_count"], 150);
    let again: HashSet<u64> = post_ids(&again).into_iter().collect();
    assert!(shown.iter().all(|post| !again.contains(post)));
    let answer = host.send_events(stranger, &batch).await.ok(202);
    assert_eq!(answer, json!({"received": 50, "deduped": 50}));
}

#[tokio::test]
async fn an_empty_directory_serves_an_empty_feed_that_is_not_degraded() {
    let host = Host::setup().start();
    for algo in ["ch", "timeline"] {
        let path = format!("/api/v1/feed?algo={algo}");
        let feed = host.get(&host.viewer_token(7), &path).await.ok(200);
        assert_eq!(feed["posts"], json!([]));
        assert_eq!(
            (&feed["cursor"], &feed["total_count"]),
            (&Value::Null, &json!(0))
        );
        assert_eq!(
            feed["served_by"],
            if algo == "ch" { "policy" } else { "timeline" }
        );
        assert_eq!(
            (&feed["algo"], &feed["fallback"]),
            (&json!(algo), &json!(false))
        );
        assert_eq!(
            (&feed["degraded"], &feed["experiment"]),
            (&json!([]), &Value::Null)
        );
        let policy = if algo == "ch" { "baseline" } else { "native" };
        assert_eq!(feed["policy"]["name"], policy);
    }
    let trending = host.get("", "/api/v1/feed/trending").await.ok(200);
    assert_eq!(
        (&trending["posts"], &trending["count"]),
        (&json!([]), &json!(0))
    );
    let suggested = host
        .get(&host.viewer_token(7), "/api/v1/discover/suggested-users")
        .await
        .ok(200);
    assert_eq!(suggested["users"], json!([]));
}

/// A drain that no test waits for.
const FOR_EVER_MS: &str = "3600000";

async fn is_not_ready(host: &Host) -> bool {
    host.send(host.request(Method::GET, "/readyz")).await.status == 503
}

#[tokio::test]
async fn a_host_that_gets_sigterm_is_not_ready_but_serves_new_connections_until_it_is_drained() {
    let mut host = Host::setup()
        .community(Community::small())
        .serve_variable("NOVA_DRAIN_MS", FOR_EVER_MS)
        .start();
    let token = host.viewer_token(7);
    host.begin_stop();
    eventually(COUNTED_WITHIN, "the host is not ready", async || {
        is_not_ready(&host).await
    })
    .await;
    for _ in 0..3 {
        // Each client opens a connection of its own.
        let client = reqwest::Client::new();
        let asked = |path: &str| {
            client
                .get(format!("{}{path}", host.url))
                .bearer_auth(&token)
        };
        assert_eq!(asked("/api/v1/feed").send().await.unwrap().status(), 200);
        assert_eq!(asked("/livez").send().await.unwrap().status(), 200);
        assert_eq!(asked("/readyz").send().await.unwrap().status(), 503);
    }
    // A second signal ends it at once, with a failure, because nothing was finished in order.
    host.begin_stop();
    assert!(!host.wait_for_end());
    assert!(
        host.log()
            .contains("a second signal ended the host at once"),
        "{}",
        host.log()
    );
}

#[tokio::test]
async fn a_drained_host_and_a_host_that_a_person_stops_end_by_themselves() {
    for (drain_ms, signal) in [("300", "TERM"), (FOR_EVER_MS, "INT")] {
        let mut host = Host::setup()
            .serve_variable("NOVA_DRAIN_MS", drain_ms)
            .start();
        host.send(host.request(Method::GET, "/livez")).await.ok(200);
        host.signal(signal);
        assert!(host.wait_for_end(), "{signal}: {}", host.log());
    }
}
