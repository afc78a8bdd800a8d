//! The load run: one generator drives a host and a bare axum route that returns the same bytes.
//! The rounds alternate, so that both see the same noise.
//!
//! Run it with `cargo bench --bench load -- throughput | swap | shadow | replay | quarantine |
//! bulkhead | policy-memory | restart | memory | events`. Each mode prints a table. The modes `stack-feeds`,
//! `stack-events`, `stack-counted` and `stack-ramp` measure one host, and `stack-fleet` measures
//! three, on the servers that the environment names (`tests/services env`).

#![expect(
    clippy::disallowed_methods,
    reason = "the load run uses the clock of this machine"
)]

mod bare;
mod bulkhead;
mod fleet;
mod generator;
mod host;
mod policy_memory;
mod quarantine;
mod replay;
mod restart;
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "the integration tests use the rest of this module, and tests may panic"
)]
#[path = "../shared/services.rs"]
mod services;
mod shadow;
mod stack;

use generator::{Report, run};
use host::Host;
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 16;
const VIEWERS: u64 = 64;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // The servers run in their own processes. The generator uses only one thread, so that it
    // takes the same share of the machine from each of them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match arguments.as_slice() {
        ["bare", file] => bare::serve(file, None),
        ["bare", file, redis_url] => bare::serve(file, Some(redis_url)),
        ["throughput"] => runtime.block_on(throughput()),
        ["swap"] => runtime.block_on(swap()),
        ["shadow"] => runtime.block_on(shadow::shadow(300)),
        ["shadow", per_second] => runtime.block_on(shadow::shadow(per_second.parse()?)),
        ["replay"] => runtime.block_on(replay::replay(10_000)),
        ["replay", records] => runtime.block_on(replay::replay(records.parse()?)),
        ["quarantine"] => runtime.block_on(quarantine::quarantine()),
        ["bulkhead"] => runtime.block_on(bulkhead::bulkhead()),
        ["policy-memory"] => runtime.block_on(policy_memory::policy_memory()),
        ["restart"] => runtime.block_on(restart::restart()),
        ["memory"] => runtime.block_on(memory(Duration::from_secs(600))),
        ["memory", seconds] => runtime.block_on(memory(Duration::from_secs(seconds.parse()?))),
        ["events"] => runtime.block_on(events()),
        ["stack-feeds"] => runtime.block_on(stack::feeds()),
        ["stack-ramp"] => runtime.block_on(stack::ramp()),
        ["stack-events"] => runtime.block_on(stack::events()),
        ["stack-counted", seconds] => {
            runtime.block_on(stack::counted(Duration::from_secs(seconds.parse()?)))
        }
        ["stack-fleet", seconds] => runtime.block_on(fleet::swaps(
            Duration::from_secs(seconds.parse()?),
            fleet::FEEDS_PER_SECOND_AND_HOST,
        )),
        ["stack-fleet", seconds, per_second] => runtime.block_on(fleet::swaps(
            Duration::from_secs(seconds.parse()?),
            per_second.parse()?,
        )),
        _ => {
            println!(
                "usage: cargo bench --bench load -- throughput | swap | shadow [PER_SECOND] | replay [RECORDS] | quarantine | bulkhead | policy-memory | restart | memory [SECONDS] | events | stack-feeds | stack-ramp | stack-events | stack-counted SECONDS | stack-fleet SECONDS [PER_SECOND]"
            );
            Ok(())
        }
    }
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{} × {cores}",
        model.map_or("unknown processor", |(_, name)| name)
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures snapshot hits, candidates hits and misses, each against the bare route.
async fn throughput() -> anyhow::Result<()> {
    println!(
        "machine: {}; {CONNECTIONS} connections, {ROUNDS} rounds of {} s each, medians",
        machine(),
        ROUND.as_secs()
    );
    let modes: [(&str, &[(&str, &str)]); 3] = [
        ("snapshot hit", &[]),
        ("candidates hit", &[("NOVA_SNAPSHOT_TTL_S", "0")]),
        ("miss", &[("NOVA_ENABLE_CACHING", "false")]),
    ];
    println!(
        "{:15} {:>10} {:>10} {:>7} {:>9} {:>9}",
        "", "bare req/s", "nova req/s", "ratio", "p50 ms", "p99 ms"
    );
    for (name, variables) in modes {
        let host = Host::start(variables)?;
        let feed = host.feed_load(VIEWERS)?;
        run(&feed, CONNECTIONS, WARM_UP).await?;
        let bare = bare::Bare::start(
            &generator::fetch(feed.address, &feed.requests[0]()).await?,
            None,
        )?;
        let bare_load = bare.load(&feed);
        run(&bare_load, CONNECTIONS, WARM_UP).await?;
        let (mut bare_rates, mut rates, mut p50, mut p99) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bare_rates.push(run(&bare_load, CONNECTIONS, ROUND).await?.per_second());
            let report = run(&feed, CONNECTIONS, ROUND).await?;
            anyhow::ensure!(report.failures == 0, "{} feeds failed", report.failures);
            rates.push(report.per_second());
            p50.push(report.percentile_ms(0.50));
            p99.push(report.percentile_ms(0.99));
        }
        let ratios = rates
            .iter()
            .zip(&bare_rates)
            .map(|(nova, bare)| nova / bare)
            .collect();
        println!(
            "{name:15} {:>10.0} {:>10.0} {:>6.0}% {:>9.2} {:>9.2}",
            median(bare_rates),
            median(rates),
            100.0 * median(ratios),
            median(p50),
            median(p99)
        );
    }
    Ok(())
}

/// Measures one swap a second for 30 s after 30 s without swaps, three times.
async fn swap() -> anyhow::Result<()> {
    const LENGTH: Duration = Duration::from_secs(30);
    let host = Host::start(&[])?;
    let feed = host.feed_load(VIEWERS)?;
    run(&feed, CONNECTIONS, WARM_UP).await?;
    println!(
        "machine: {}; {CONNECTIONS} connections, {} s each",
        machine(),
        LENGTH.as_secs()
    );
    println!(
        "{:15} {:>10} {:>9} {:>9} {:>9} {:>7}",
        "", "req/s", "p50 ms", "p99 ms", "max ms", "failed"
    );
    let print = |name: &str, report: &Report| {
        println!(
            "{name:15} {:>10.0} {:>9.2} {:>9.2} {:>9.2} {:>7}",
            report.per_second(),
            report.percentile_ms(0.50),
            report.percentile_ms(0.99),
            report.percentile_ms(1.0),
            report.failures
        );
    };
    let mut quiet_p99 = Vec::new();
    let mut swapped_p99 = Vec::new();
    for round in 0..3 {
        let quiet = run(&feed, CONNECTIONS, LENGTH).await?;
        print(&format!("no swaps {round}"), &quiet);
        quiet_p99.push(quiet.percentile_ms(0.99));
        let (swapped, swaps) = tokio::join!(
            run(&feed, CONNECTIONS, LENGTH),
            host.swap_every(Duration::from_secs(1), LENGTH)
        );
        let swapped = swapped?;
        print(&format!("{} swaps {round}", swaps?), &swapped);
        swapped_p99.push(swapped.percentile_ms(0.99));
    }
    println!(
        "p99 with swaps / without, medians: {:.2}",
        median(swapped_p99) / median(quiet_p99)
    );
    Ok(())
}

/// Resident memory: idle, per loaded policy, and during a long load.
async fn memory(length: Duration) -> anyhow::Result<()> {
    const POLICIES: u32 = 20;
    println!("machine: {}", machine());
    let host = Host::start(&[])?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = host.resident_mb()?;
    println!("host idle: {idle:.1} MiB");
    host.load_policies(POLICIES).await?;
    let loaded = host.resident_mb()?;
    println!(
        "per loaded policy: {:.2} MiB ({POLICIES} of three modules each, all in use by an experiment)",
        (loaded - idle) / f64::from(POLICIES)
    );
    let feed = host.feed_load(VIEWERS)?;
    run(&feed, CONNECTIONS, WARM_UP).await?;
    let (started, slice) = (Instant::now(), length / 10);
    while started.elapsed() < length {
        let report = run(&feed, CONNECTIONS, slice).await?;
        println!(
            "{:>5} s: {:.1} MiB, {:.0} req/s, {} failed",
            started.elapsed().as_secs(),
            host.resident_mb()?,
            report.per_second(),
            report.failures
        );
    }
    Ok(())
}

/// Measures the acceptance of event batches, and the time from an event's 202 until it is
/// counted.
async fn events() -> anyhow::Result<()> {
    const BATCH: usize = 50;
    println!(
        "machine: {}; {CONNECTIONS} connections, batches of {BATCH}",
        machine()
    );
    let host = Host::start(&[])?;
    let load = host.event_load(VIEWERS, BATCH)?;
    let report = run(&load, CONNECTIONS, Duration::from_secs(30)).await?;
    println!(
        "{:.0} events/s accepted durably, p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms, {} failed",
        report.per_second() * BATCH as f64,
        report.percentile_ms(0.50),
        report.percentile_ms(0.95),
        report.percentile_ms(0.99),
        report.failures
    );
    let delays = host.counting_delays(200).await?;
    println!(
        "event accepted → counted: p50 {:.0} ms, p95 {:.0} ms",
        generator::percentile(&delays, 0.5),
        generator::percentile(&delays, 0.95)
    );
    Ok(())
}
