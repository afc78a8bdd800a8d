//! The ledger of events. Every acknowledged event is in ClickHouse exactly once and the
//! aggregates agree with the raw table, even if hosts and servers are killed in between.

use crate::harness::{Community, Host, event, eventually};
use crate::senders::{BATCH_EVENTS, Sender, batch, send_until_the_host_is_gone};
use crate::services::Stack;
use chrono::{DateTime, Utc};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const USERS: std::ops::Range<u64> = 100..108;
const COUNTED_WITHIN: Duration = Duration::from_secs(120);
/// A round ends after this time if nothing has killed the host.
const ROUND: Duration = Duration::from_secs(4);

/// Failures to inject during a round of sending.
#[derive(Debug, Clone, Copy)]
enum Disaster {
    /// SIGKILL at a random moment.
    Kill,
    /// The host aborts when it reaches this point for the n-th time.
    At(&'static str, u32),
    /// A server is killed and restarted while the host continues to run.
    Server(&'static str),
}

const DISASTERS: [Disaster; 14] = [
    Disaster::Kill,
    Disaster::At("after_broker_ack", 3),
    Disaster::At("after_insert", 2),
    Disaster::Server("clickhouse"),
    Disaster::At("after_intent", 2),
    Disaster::Kill,
    Disaster::At("after_spool_commit", 5),
    Disaster::Server("kafka"),
    Disaster::At("after_insert", 1),
    Disaster::At("after_broker_ack", 1),
    Disaster::Kill,
    Disaster::At("after_intent", 1),
    Disaster::Kill,
    Disaster::At("after_insert", 4),
];

fn start(stack: &Stack, directory: &Path, disaster: Option<Disaster>) -> Host {
    let setup = Host::setup()
        .data_dir(directory)
        .stack(stack)
        .variable("NOVA_RATE_LIMIT", "off");
    match disaster {
        Some(Disaster::At(point, times)) => setup
            .variable("NOVA_FAILPOINTS", &format!("{point}=abort_once:{times}"))
            .start(),
        _ => setup.start(),
    }
}

async fn round(
    stack: &Stack,
    host: &mut Host,
    disaster: Disaster,
    senders: &[Arc<Sender>],
    begun: DateTime<Utc>,
) {
    let sending: Vec<_> = USERS
        .zip(senders)
        .map(|(user, sender)| {
            let (url, token) = (host.url.clone(), host.viewer_token(user));
            let sending = send_until_the_host_is_gone(url, token, sender.clone(), begun);
            tokio::spawn(sending)
        })
        .collect();
    let length = match disaster {
        Disaster::Kill => Duration::from_millis(rand::random_range(200..2_500)),
        _ => ROUND,
    };
    if let Disaster::Server(name) = disaster {
        stack.service("kill", name);
        tokio::time::sleep(Duration::from_millis(500)).await;
        stack.service("start", name);
    }
    // If the host aborts at its failpoint, the senders end too.
    let _ = tokio::time::timeout(length, futures::future::join_all(sending)).await;
    if let Disaster::At(point, _) = disaster {
        let met = format!("nova: failpoint {point}");
        assert!(host.log().contains(&met), "{point} was never reached");
    }
    host.kill();
}

/// Rows and distinct events of the raw table, and the likes that each aggregate counts.
async fn ledger(stack: &Stack) -> [u64; 5] {
    let rows = stack
        .clickhouse(
            "SELECT (SELECT count() FROM events WHERE action = 'like') AS raw, \
             (SELECT uniqExact(user_id, post_id, action, toUnixTimestamp(event_time)) FROM events WHERE action = 'like') AS distinct_events, \
             (SELECT sum(likes) FROM post_metrics_1h) AS by_post, \
             (SELECT sum(likes) FROM trending_1h) AS by_hour, \
             (SELECT sum(likes) FROM user_author_90d) AS by_author",
        )
        .await;
    ["raw", "distinct_events", "by_post", "by_hour", "by_author"].map(|column| {
        let value = &rows[0][column];
        value
            .as_u64()
            .or_else(|| value.as_str()?.parse().ok())
            .unwrap()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_event_is_stored_and_counted_exactly_once_after_any_kill() {
    let Some(stack) = Stack::alone().await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let (begun, senders) = (
        Utc::now(),
        USERS.map(|_| Arc::<Sender>::default()).collect::<Vec<_>>(),
    );
    for disaster in DISASTERS {
        let mut host = start(&stack, directory.path(), Some(disaster));
        round(&stack, &mut host, disaster, &senders, begun).await;
    }
    let host = start(&stack, directory.path(), None);
    // Send once more, for each sender, the one batch whose response it never received. Then the
    // set of accepted events is known exactly.
    let mut accepted = 0;
    for (user, sender) in USERS.zip(&senders) {
        let answered = sender.answered.load(Ordering::SeqCst);
        host.send_events(user, &batch(begun, answered))
            .await
            .ok(202);
        accepted += answered + 1;
    }
    assert!(accepted >= 200, "only {accepted} batches were accepted");
    let all = accepted * BATCH_EVENTS;
    eventually(
        COUNTED_WITHIN,
        "everything accepted is stored",
        async || ledger(&stack).await[0] >= all,
    )
    .await;
    // Events that the spool sends again after a lost acknowledgement may arrive late.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        ledger(&stack).await,
        [all; 5],
        "raw rows, distinct events, by post, by hour, by author"
    );
    println!(
        "{accepted} batches, {all} events, {} disasters",
        DISASTERS.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spool_accepts_events_without_a_broker_until_it_is_full() {
    let Some(stack) = Stack::alone().await else {
        return;
    };
    let host = Host::setup()
        .stack(&stack)
        .community(Community::small())
        .variable("NOVA_RATE_LIMIT", "off")
        .variable("NOVA_SPOOL_BYTES_MAX", "60000")
        .start();
    stack.service("stop", "kafka");
    let (begun, mut accepted) = (Utc::now(), 0);
    let refused = loop {
        let events = batch(begun, accepted / BATCH_EVENTS);
        let answer = host.send_events(7, &events).await;
        if answer.status != 202 {
            break answer;
        }
        accepted += BATCH_EVENTS;
        assert!(accepted < 2_000, "the spool has no bound");
    };
    assert!(refused.headers.contains_key("retry-after"));
    refused.problem(503);
    assert!(
        accepted > 0,
        "events are refused although the spool is empty"
    );
    // Feeds are still served.
    assert_eq!(host.feed(7).await["served_by"], "policy");
    stack.service("start", "kafka");
    eventually(COUNTED_WITHIN, "accepted events are stored", async || {
        let rows = stack
            .clickhouse("SELECT count() AS n FROM events WHERE origin = 'kafka'")
            .await;
        rows[0]["n"]
            .as_u64()
            .or_else(|| rows[0]["n"].as_str()?.parse().ok())
            == Some(accepted)
    })
    .await;
    eventually(COUNTED_WITHIN, "events are accepted again", async || {
        host.send_events(7, &[event(1, 1, "share", 1)]).await.status == 202
    })
    .await;
}
