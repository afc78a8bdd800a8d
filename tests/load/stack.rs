//! A host on PostgreSQL, Redis, Kafka and ClickHouse. The servers share the machine with the
//! host and the generator.

use crate::bare::Bare;
use crate::generator::{self, Report, fetch, pace, run};
use crate::host::Host;
use crate::services::Stack;
use crate::{CONNECTIONS, ROUND, ROUNDS, VIEWERS, WARM_UP, machine, median};
use anyhow::Context as _;
use nova_model::event::{AcceptedEvent, Action};
use nova_stores::kafka::message;
use nova_support::clock::unix_ms;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use std::time::{Duration, Instant};
use uuid::Uuid;

const CONCURRENT: usize = 100;
/// A URL on which nothing listens.
const NOWHERE: &str = "http://127.0.0.1:1/nova";

pub async fn stack() -> anyhow::Result<Stack> {
    println!("machine: {}; the servers run on it too", machine());
    Stack::migrated()
        .await
        .context("no servers; start them: tests/services up, then eval \"$(tests/services env)\"")
}

pub fn print(name: &str, report: &Report) {
    println!(
        "{name:26} {:>8.0} req/s  p50 {:>7.2} ms  p95 {:>7.2} ms  p99 {:>7.2} ms  {} failed",
        report.per_second(),
        report.percentile_ms(0.50),
        report.percentile_ms(0.95),
        report.percentile_ms(0.99),
        report.failures
    );
}

/// Measures every step of the fallback chain that serves in normal operation and during a fault,
/// at 100 concurrent requests. Also compares a cache hit with a bare route that reads from
/// Redis.
pub async fn feeds() -> anyhow::Result<()> {
    let stack = stack().await?;
    hits_beside_bare(&stack).await?;
    let modes: [(&str, &[(&str, &str)]); 5] = [
        ("snapshot hit", &[]),
        ("candidates hit", &[("NOVA_SNAPSHOT_TTL_S", "0")]),
        ("miss", &[("NOVA_ENABLE_CACHING", "false")]),
        (
            "timeline asked for",
            &[
                ("NOVA_USE_CH_RANKING", "false"),
                ("NOVA_ENABLE_CACHING", "false"),
            ],
        ),
        // Served from the snapshots that the previous modes left.
        (
            "older snapshot, no ClickHouse",
            &[
                ("CLICKHOUSE_URL", NOWHERE),
                ("NOVA_ENABLE_CACHING", "false"),
            ],
        ),
    ];
    for (name, variables) in modes {
        let host = Host::start_on(&stack, variables)?;
        let feed = host.feed_load(VIEWERS)?;
        run(&feed, CONCURRENT, WARM_UP).await?;
        print(name, &run(&feed, CONCURRENT, ROUND * 2).await?);
    }
    let host = Host::start_on(&stack, &[])?;
    discoveries(&host).await?;
    hit_rate(&host).await
}

async fn hits_beside_bare(stack: &Stack) -> anyhow::Result<()> {
    let host = Host::start_on(stack, &[])?;
    let feed = host.feed_load(VIEWERS)?;
    run(&feed, CONNECTIONS, WARM_UP).await?;
    let body = fetch(feed.address, &feed.requests[0]()).await?;
    let bare = Bare::start(&body, Some(&stack.redis_url))?;
    let bare_load = bare.load(&feed);
    run(&bare_load, CONNECTIONS, WARM_UP).await?;
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let reference = run(&bare_load, CONNECTIONS, ROUND).await?.per_second();
        let rate = run(&feed, CONNECTIONS, ROUND).await?.per_second();
        rates.push(rate);
        ratios.push(rate / reference);
    }
    println!(
        "hit beside a bare route that reads two values from Redis, {CONNECTIONS} connections, {ROUNDS} rounds: {:.0} req/s, {:.0} %",
        median(rates),
        100.0 * median(ratios)
    );
    Ok(())
}

/// Measures trending and suggestions, cached and uncached.
async fn discoveries(host: &Host) -> anyhow::Result<()> {
    for (name, path) in [
        ("trending", "/api/v1/feed/trending?window=24h"),
        ("suggestions", "/api/v1/discover/suggested-users"),
    ] {
        let load = host.path_load(path, 1_000..1_100)?;
        let mut first = Vec::new();
        for request in &load.requests {
            let asked = Instant::now();
            fetch(load.address, &request()).await?;
            first.push(asked.elapsed().as_secs_f64() * 1_000.0);
        }
        println!(
            "{name}, first time of each viewer, one after the other: p50 {:.1} ms, p95 {:.1} ms, max {:.1} ms",
            generator::percentile(&first, 0.5),
            generator::percentile(&first, 0.95),
            generator::percentile(&first, 1.0)
        );
        print(
            &format!("{name}, cached"),
            &run(&load, CONCURRENT, ROUND).await?,
        );
    }
    Ok(())
}

/// Measures the share of feeds served from a cache after every viewer has made a request, over
/// more than the lifetime of a snapshot.
async fn hit_rate(host: &Host) -> anyhow::Result<()> {
    let feed = host.feed_load(300)?;
    run(&feed, CONNECTIONS, WARM_UP * 2).await?;
    let hits = async || {
        host.metric("nova_feed_feed_requests_total", "cache=\"hit\"")
            .await
    };
    let all = async || host.metric("nova_feed_feed_requests_total", "algo").await;
    let (hits_before, all_before) = (hits().await?, all().await?);
    pace(&feed, 50, Duration::from_secs(150)).await?;
    let (hits, all) = (hits().await? - hits_before, all().await? - all_before);
    println!(
        "cache hits after warm-up, 300 viewers, 50 feeds/s for 150 s: {:.1} %",
        100.0 * hits / all
    );
    Ok(())
}

/// Measures an increasing number of concurrent viewers.
pub async fn ramp() -> anyhow::Result<()> {
    let stack = stack().await?;
    let host = Host::start_on(&stack, &[])?;
    let feed = host.feed_load(1_000)?;
    run(&feed, CONNECTIONS, WARM_UP * 5).await?;
    for connections in [1, 4, 16, 64, 256, 1_000] {
        print(
            &format!("{connections} concurrent viewers"),
            &run(&feed, connections, ROUND * 2).await?,
        );
    }
    Ok(())
}

/// Sends 10,000 events a second for 30 s, then measures the time until they are stored. Compares
/// the rate with librdkafka's own producer.
pub async fn events() -> anyhow::Result<()> {
    const BATCH: usize = 50;
    const PER_SECOND: usize = 10_000;
    const LENGTH: Duration = Duration::from_secs(30);
    let stack = stack().await?;
    let host = Host::start_on(&stack, &[])?;
    let stored = async || {
        count(
            &stack,
            "SELECT count() AS n FROM events WHERE origin = 'kafka'",
        )
        .await
    };
    let load = host.event_load(VIEWERS, BATCH)?;
    let before = stored().await?;
    let paced = async { pace(&load, PER_SECOND / BATCH, LENGTH).await };
    let watched = async {
        let (mut lag_s, mut oldest_s) = (0.0_f64, 0.0_f64);
        for _ in 0..LENGTH.as_secs() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let most = host
                .most("nova_feed_kafka_consumer_lag_seconds", "events\"")
                .await?;
            lag_s = lag_s.max(most);
            oldest_s = oldest_s.max(host.most("nova_feed_spool_oldest_seconds", "").await?);
        }
        Ok::<_, anyhow::Error>((lag_s, oldest_s))
    };
    let (report, watched) = tokio::join!(paced, watched);
    let (report, (lag_s, oldest_s)) = (report?, watched?);
    let sent = host
        .metric("nova_feed_events_received_total", "accepted")
        .await?;
    let ended = Instant::now();
    while ((stored().await? - before) as f64) < sent && ended.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let arrived = stored().await? - before;
    print(&format!("{PER_SECOND} events/s, {BATCH} a batch"), &report);
    println!(
        "{sent} accepted, {arrived} stored {:.1} s after the last; lag at most {lag_s:.1} s, oldest in the spool at most {oldest_s:.1} s",
        ended.elapsed().as_secs_f64()
    );
    let mut rates = Vec::new();
    for _ in 0..3 {
        rates.push(
            run(&load, CONCURRENT, Duration::from_secs(10))
                .await?
                .per_second()
                * BATCH as f64,
        );
    }
    let through_nova = median(rates);
    let reference = librdkafka(&stack)?;
    println!(
        "as fast as accepted: {through_nova:.0} events/s; librdkafka's own producer, same broker, messages and settings: {reference:.0} messages/s ({:.0} %)",
        100.0 * through_nova / reference
    );
    Ok(())
}

async fn count(stack: &Stack, query: &str) -> anyhow::Result<u64> {
    let rows = stack.clickhouse(query).await;
    let n = &rows.first().context("no row")?["n"];
    n.as_u64()
        .or_else(|| n.as_str()?.parse().ok())
        .context("no number")
}

/// Messages per second of a bare producer with the host's settings and messages: the median of
/// three runs of 5 s.
fn librdkafka(stack: &Stack) -> anyhow::Result<f64> {
    const MESSAGES: u64 = 10_000;
    let topic = format!("{}events", stack.kafka_prefix);
    let messages: Vec<_> = (1..=MESSAGES).map(|n| message::event(&view(n))).collect();
    let mut rates = Vec::new();
    for _ in 0..3 {
        let producer: ThreadedProducer<_> = ClientConfig::new()
            .set("bootstrap.servers", &stack.kafka_brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            .create()?;
        let (started, mut sent, mut messages) = (Instant::now(), 0_u64, messages.iter().cycle());
        while started.elapsed() < Duration::from_secs(5) {
            let message = messages.next().context("no message")?;
            let key = message.key.as_deref().unwrap_or_default();
            let mut record = BaseRecord::to(&topic).key(key).payload(&message.payload);
            while let Err((_, back)) = producer.send(record) {
                record = back;
                std::thread::sleep(Duration::from_millis(1));
            }
            sent += 1;
        }
        producer.flush(Duration::from_secs(60))?;
        rates.push(sent as f64 / started.elapsed().as_secs_f64());
    }
    Ok(median(rates))
}

/// A view event, as the clients of this run send it.
fn view(n: u64) -> AcceptedEvent {
    AcceptedEvent {
        event_id: Uuid::now_v7(),
        event_time_ms: unix_ms(),
        accepted_ms: unix_ms(),
        user_id: n % VIEWERS + 1,
        post_id: n % 3_000 + 1,
        author_id: n % 300 + 1,
        action: Action::View,
        dwell_ms: None,
        device: "load".to_owned(),
        app_ver: "1.0.0".to_owned(),
        ranking_id: None,
    }
}

/// Sends one like after the other and measures the time until a ranking would count it, under a
/// load of feeds and events.
pub async fn counted(length: Duration) -> anyhow::Result<()> {
    let stack = stack().await?;
    let host = Host::start_on(&stack, &[])?;
    let (feed, events) = (host.feed_load(VIEWERS)?, host.event_load(VIEWERS, 10)?);
    let likes = async {
        let (started, mut delays, mut post) = (Instant::now(), Vec::new(), 0);
        while started.elapsed() < length {
            post = post % 3_000 + 1;
            delays.push(host.counting_delay(post).await?);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok::<_, anyhow::Error>(delays)
    };
    // The load is 500 events and 50 feeds a second.
    let (delays, events, feeds) =
        tokio::join!(likes, pace(&events, 50, length), pace(&feed, 50, length));
    let delays = delays?;
    print("feeds meanwhile", &feeds?);
    print("event batches meanwhile", &events?);
    println!(
        "like accepted → counted in the features, {} likes over {} s: p50 {:.0} ms, p95 {:.0} ms, max {:.0} ms; resident {:.0} MiB",
        delays.len(),
        length.as_secs(),
        generator::percentile(&delays, 0.5),
        generator::percentile(&delays, 0.95),
        generator::percentile(&delays, 1.0),
        host.resident_mb()?
    );
    Ok(())
}
