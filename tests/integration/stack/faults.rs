//! The fault table, end to end: the result for a viewer, a client and an operator while one
//! store fails.

use crate::fault_proxy::{Fault, FaultProxy};
use crate::harness::{Community, Host, event, eventually, post_ids};
use crate::senders::{BATCH_EVENTS, batch};
use crate::services::Stack;
use chrono::Utc;
use serde_json::{Value, json};
use std::time::Duration;

/// The faults to inject. The reset comes within the first bytes of any response.
const FAULTS: [Fault; 4] = [
    Fault::Refuse,
    Fault::Silent,
    Fault::ResetAfter(3),
    Fault::Garbage,
];
const RECOVERS_WITHIN: Duration = Duration::from_secs(60);

/// A host that reaches one store through a proxy. Unless `caches` is set, it serves no feed from
/// a cache. Its circuits close again soon.
struct Faulty {
    host: Host,
    proxy: FaultProxy,
    _stack: Stack,
}

impl Faulty {
    async fn in_front_of(variable: &str, caches: bool) -> Option<Self> {
        let mut stack = Stack::migrated().await?;
        let url = match variable {
            "CLICKHOUSE_URL" => &mut stack.clickhouse_url,
            "POSTGRES_URL" => &mut stack.postgres_url,
            "REDIS_URL" => &mut stack.redis_url,
            other => panic!("no proxy for {other}"),
        };
        let (proxy, through) = FaultProxy::in_front_of(url).await;
        let setup = Host::setup()
            .stack(&stack)
            .community(Community::small())
            .variable("NOVA_RATE_LIMIT", "off")
            .variable("NOVA_CIRCUIT_OPEN_MS", "500")
            .variable("NOVA_SOURCE_TIMEOUT_MS", "2000")
            // A list of trending posts is refreshed for each request.
            .variable("NOVA_TRENDING_TTL_S", "0")
            .serve_variable(variable, &through);
        let setup = if caches {
            setup
        } else {
            setup
                .variable("NOVA_SNAPSHOT_TTL_S", "0")
                .variable("NOVA_CANDIDATES_TTL_S", "0")
        };
        Some(Self {
            host: setup.start(),
            proxy,
            _stack: stack,
        })
    }

    async fn component(&self, name: &str) -> Value {
        let health = self.host.get("", "/health").await;
        health.body["components"][name]["state"].clone()
    }

    async fn becomes_whole(&self, viewer: u64) {
        eventually(RECOVERS_WITHIN, "no feed is degraded", async || {
            let feed = self.host.feed(viewer).await;
            feed["degraded"] == json!([]) && feed["served_by"] == "policy"
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_clickhouse_a_viewer_gets_the_last_snapshot_and_a_stranger_the_timeline() {
    let Some(faulty) = Faulty::in_front_of("CLICKHOUSE_URL", false).await else {
        return;
    };
    let host = &faulty.host;
    for (fault, stranger) in FAULTS.into_iter().zip(20..) {
        let known = host.feed(7).await;
        assert_eq!(known["served_by"], "policy", "{known}");
        faulty.proxy.set(fault);
        for _ in 0..4 {
            let feed = host.feed(7).await;
            assert_eq!(feed["served_by"], "snapshot", "{fault:?}: {feed}");
            assert_eq!(feed["degraded"], json!(["clickhouse"]), "{fault:?}");
            assert_eq!(feed["fallback"], false);
        }
        let feed = host.feed(stranger).await;
        assert_eq!(feed["served_by"], "timeline", "{fault:?}: {feed}");
        assert_eq!(feed["algo"], "timeline");
        assert_eq!(feed["fallback"], true);
        assert_eq!(feed["degraded"], json!(["clickhouse"]), "{fault:?}");
        assert_eq!(post_ids(&feed).len(), 50, "{fault:?}");
        assert!(feed["posts"][0]["score"].is_null());
        assert_eq!(faulty.component("clickhouse").await, "down", "{fault:?}");
        assert_eq!(host.get("", "/health").await.status, 200);
        let state = host.operator().get("/debug/system/state").await;
        let circuit = state["circuits"]["clickhouse"].as_str().unwrap();
        assert!(["open", "half_open"].contains(&circuit), "{fault:?}");
        assert_eq!(host.get("", "/readyz").await.status, 200);
        faulty.proxy.set(Fault::None);
        faulty.becomes_whole(7).await;
    }
    assert!(
        host.metric("nova_feed_store_queries_total{query=\"followees\",status=\"circuit_open\",store=\"clickhouse\"}")
            .await
            > 0.0,
        "the circuit never kept a query away"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_clickhouse_a_trending_list_is_the_last_good_one_and_never_an_empty_one() {
    let Some(faulty) = Faulty::in_front_of("CLICKHOUSE_URL", true).await else {
        return;
    };
    let host = &faulty.host;
    let path = "/api/v1/feed/trending?window=7d";
    faulty.proxy.set(Fault::Refuse);
    host.get("", path).await.problem(503);
    faulty.proxy.set(Fault::None);
    eventually(RECOVERS_WITHIN, "there is a list", async || {
        host.get("", path).await.status == 200
    })
    .await;
    let good = host.get("", path).await.ok(200);
    assert!(good["count"].as_u64().unwrap() > 0);
    for fault in FAULTS {
        faulty.proxy.set(fault);
        let kept = host.get("", path).await.ok(200);
        assert_eq!(kept["posts"], good["posts"], "{fault:?}");
        assert_eq!(kept["degraded"], json!(["clickhouse"]), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_every_lookup_is_a_miss_and_feeds_and_events_still_work() {
    let Some(faulty) = Faulty::in_front_of("REDIS_URL", true).await else {
        return;
    };
    let host = &faulty.host;
    for (fault, post) in FAULTS.into_iter().zip(33..) {
        faulty.becomes_whole(7).await;
        faulty.proxy.set(fault);
        for _ in 0..4 {
            let feed = host.feed(7).await;
            assert_eq!(feed["served_by"], "policy", "{fault:?}: {feed}");
            assert_eq!(feed["cache_hit"], false, "{fault:?}");
            assert_eq!(feed["degraded"], json!(["redis"]), "{fault:?}");
        }
        let accepted = host.send_events(7, &[event(post, 3, "like", 1)]).await;
        assert_eq!(accepted.ok(202)["deduped"], 0, "{fault:?}");
        assert_eq!(faulty.component("redis").await, "down", "{fault:?}");
        assert_eq!(host.get("", "/readyz").await.status, 200);
        faulty.proxy.set(Fault::None);
    }
    faulty.becomes_whole(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_a_cursor_continues_on_the_host_that_holds_its_ranking() {
    let Some(faulty) = Faulty::in_front_of("REDIS_URL", true).await else {
        return;
    };
    let host = &faulty.host;
    let token = host.viewer_token(61);
    let first = host.get(&token, "/api/v1/feed?limit=20").await.ok(200);
    faulty.proxy.set(Fault::Refuse);
    let path = format!(
        "/api/v1/feed?limit=20&cursor={}",
        first["cursor"].as_str().unwrap()
    );
    let second = host.get(&token, &path).await.ok(200);
    assert_eq!(second["ranking_id"], first["ranking_id"]);
    let shown = post_ids(&first);
    assert!(post_ids(&second).iter().all(|post| !shown.contains(post)));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgres_feeds_are_not_degraded_and_changes_are_refused_until_it_returns() {
    let Some(faulty) = Faulty::in_front_of("POSTGRES_URL", false).await else {
        return;
    };
    let host = &faulty.host;
    let operator = host.admin_token("operator");
    let activate = "/admin/v1/policies/timeline/1.0.0/activate";
    for fault in FAULTS {
        faulty.proxy.set(fault);
        let feed = host.feed(7).await;
        assert_eq!(feed["served_by"], "policy", "{fault:?}: {feed}");
        assert_eq!(feed["degraded"], json!([]), "{fault:?}");
        host.post(&operator, activate, &json!({}))
            .await
            .problem(503);
        assert_eq!(host.get("", "/readyz").await.status, 200);
    }
    faulty.proxy.set(Fault::None);
    eventually(RECOVERS_WITHIN, "changes are accepted again", async || {
        host.post(&operator, activate, &json!({})).await.status == 200
    })
    .await;
    assert_eq!(host.feed(7).await["policy"]["name"], "timeline");
}

/// Puts a proxy at the address that the broker advertises, so that every request of the producer
/// and the consumers goes through the proxy.
#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_events_are_accepted_and_each_is_stored_once_when_it_returns() {
    let Some(stack) = Stack::migrated().await else {
        return;
    };
    let [at, upstream] = ["KAFKA_PROXY", "KAFKA_BEHIND_PROXY"].map(|name| {
        std::env::var(name).unwrap_or_else(|_| panic!("set {name}: see tests/services env"))
    });
    let proxy = FaultProxy::start_at(&at, &upstream).await;
    let host = Host::setup()
        .stack(&stack)
        .community(Community::small())
        .variable("NOVA_RATE_LIMIT", "off")
        .serve_variable("KAFKA_BROKERS", &at)
        .start();
    let component = async || {
        let health = host.get("", "/health").await;
        health.body["components"]["kafka"]["state"].clone()
    };
    let stored = async || {
        let events = "SELECT toUInt32(count()) AS n FROM events WHERE origin = 'kafka'";
        stack.clickhouse(events).await[0]["n"].as_u64().unwrap()
    };
    let (begun, mut batches) = (Utc::now(), 0..);
    let mut send = async || {
        let batch = batch(begun, batches.next().unwrap());
        let accepted = host.send_events(7, &batch).await.ok(202);
        assert_eq!(accepted["deduped"], 0);
    };
    send().await;
    let mut accepted = BATCH_EVENTS;
    for fault in FAULTS {
        eventually(RECOVERS_WITHIN, "accepted events are stored", async || {
            stored().await == accepted
        })
        .await;
        proxy.set(fault);
        eventually(RECOVERS_WITHIN, "the fault is detected", async || {
            component().await == "down"
        })
        .await;
        for _ in 0..3 {
            send().await;
        }
        accepted += 3 * BATCH_EVENTS;
        let feed = host.feed(7).await;
        assert_eq!(feed["served_by"], "policy", "{fault:?}: {feed}");
        assert_eq!(feed["degraded"], json!([]), "{fault:?}");
        assert_eq!(host.get("", "/readyz").await.status, 200);
        // Long enough for some attempts to fail.
        tokio::time::sleep(Duration::from_secs(3)).await;
        proxy.set(Fault::None);
    }
    eventually(RECOVERS_WITHIN, "all events are stored", async || {
        stored().await >= accepted
    })
    .await;
    // Messages sent again because their acknowledgement was lost may arrive late.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stored().await, accepted);
    assert_eq!(component().await, "up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_started_without_any_store_is_live_and_becomes_ready_without_a_restart() {
    let Some(mut stack) = Stack::migrated().await else {
        return;
    };
    let files = Community::small();
    let data = tempfile::tempdir().unwrap();
    let variables: Vec<(String, String)> = stack
        .variables()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    files.import(data.path(), &variables);
    let mut proxies = Vec::new();
    for url in [
        &mut stack.clickhouse_url,
        &mut stack.postgres_url,
        &mut stack.redis_url,
    ] {
        let (proxy, through) = FaultProxy::in_front_of(url).await;
        proxy.set(Fault::Refuse);
        proxies.push(proxy);
        *url = through;
    }
    // The proxy is only the bootstrap address. The broker then advertises its own address, to
    // which clients connect directly.
    let brokers = format!("http://{}", stack.kafka_brokers);
    let (proxy, through) = FaultProxy::in_front_of(&brokers).await;
    proxy.set(Fault::Refuse);
    proxies.push(proxy);
    stack.kafka_brokers = through.replace("http://", "").replace('/', "");
    let host = Host::setup()
        .data_dir(data.path())
        .stack(&stack)
        .variable("NOVA_CIRCUIT_OPEN_MS", "500")
        .start();
    assert_eq!(host.get("", "/livez").await.status, 200);
    assert_eq!(host.get("", "/readyz").await.status, 503);
    let answer = host.get(&host.viewer_token(7), "/api/v1/feed").await;
    assert!(answer.headers.contains_key("retry-after"));
    answer.problem(503);
    for proxy in &proxies {
        proxy.set(Fault::None);
    }
    eventually(RECOVERS_WITHIN, "it is ready", async || {
        host.get("", "/readyz").await.status == 200
    })
    .await;
    eventually(RECOVERS_WITHIN, "feeds are not degraded", async || {
        let answer = host.get(&host.viewer_token(7), "/api/v1/feed").await;
        answer.status == 200 && answer.body["degraded"] == json!([])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_servers_are_detected_and_used_again_after_a_restart() {
    let Some(stack) = Stack::alone().await else {
        return;
    };
    let host = Host::setup()
        .stack(&stack)
        .community(Community::small())
        .variable("NOVA_RATE_LIMIT", "off")
        .variable("NOVA_CIRCUIT_OPEN_MS", "500")
        .start();
    for (service, served_by) in [
        ("clickhouse", "snapshot"),
        ("redis", "policy"),
        ("postgres", "policy"),
    ] {
        // The viewer's own like invalidates the cached ranking, so the next request needs the
        // stores.
        let now = event(3, 3, "like", 0);
        assert_eq!(host.feed(7).await["served_by"], "policy");
        stack.service("kill", service);
        host.send_events(7, &[now]).await.ok(202);
        let feed = host.feed(7).await;
        assert_eq!(feed["served_by"], served_by, "{service}: {feed}");
        stack.service("start", service);
        eventually(RECOVERS_WITHIN, "everything is up", async || {
            host.get("", "/health").await.body["status"] == "up"
        })
        .await;
        eventually(RECOVERS_WITHIN, "feeds are not degraded", async || {
            let feed = host.feed(7).await;
            feed["degraded"] == json!([]) && feed["served_by"] == "policy"
        })
        .await;
    }
}
