//! Three hosts on one stack under load, while an operator activates another policy 24 times a
//! minute.

use crate::generator::{Report, pace, percentile};
use crate::host::Host;
use crate::stack::{print, stack};
use crate::{VIEWERS, WARM_UP, median};
use anyhow::Context as _;
use futures::future::try_join_all;
use std::time::{Duration, Instant};

const HOSTS: usize = 3;
/// Load per host, far below the capacity of the machine: a queue would hide the cost of a swap.
pub const FEEDS_PER_SECOND_AND_HOST: usize = 300;
const SWAP_INTERVAL: Duration = Duration::from_millis(2_500);
/// Length of a slice. Slices with and without swaps alternate, so that both see the same noise.
const SLICE: Duration = Duration::from_secs(30);
const NOTICED_WITHIN: Duration = Duration::from_secs(30);
/// A viewer outside the load, so the load's cached rankings do not affect its feeds.
const WATCHER: u64 = 250;

/// Measures `length` with swaps, in slices that alternate with as many slices without swaps.
pub async fn swaps(length: Duration, per_second: usize) -> anyhow::Result<()> {
    let stack = stack().await?;
    let mut hosts = vec![Host::start_on(&stack, &[])?];
    for _ in 1..HOSTS {
        hosts.push(Host::start_beside(&stack)?);
    }
    load(&hosts, per_second, WARM_UP * 5).await?;
    let slices = (length.as_secs() / SLICE.as_secs()).max(1);
    println!(
        "{HOSTS} hosts, {per_second} feeds/s each, {slices} times {} s with a swap every {SWAP_INTERVAL:?} and without",
        SLICE.as_secs()
    );
    let (mut quiet, mut swapped, mut reach_ms) = (Vec::new(), Vec::new(), Vec::new());
    for slice in 1..=slices {
        quiet.push(load(&hosts, per_second, SLICE).await?);
        let (report, reached) =
            tokio::try_join!(load(&hosts, per_second, SLICE), swap(&hosts, SLICE))?;
        swapped.push(report);
        reach_ms.extend(reached);
        let resident: anyhow::Result<Vec<String>> = hosts
            .iter()
            .map(|host| Ok(format!("{:.1}", host.resident_mb()?)))
            .collect();
        println!("minute {slice}: resident {} MiB", resident?.join(", "));
    }
    summary(quiet, swapped, &reach_ms);
    Ok(())
}

fn summary(quiet: Vec<Report>, swapped: Vec<Report>, reach_ms: &[f64]) {
    let ratios = quiet.iter().zip(&swapped);
    let ratios =
        ratios.map(|(quiet, swapped)| swapped.percentile_ms(0.99) / quiet.percentile_ms(0.99));
    let ratio = median(ratios.collect());
    print("without swaps", &Report::in_turn(quiet));
    print("with swaps", &Report::in_turn(swapped));
    println!("p99 with swaps / without, median of the slices: {ratio:.2}");
    println!(
        "from an activation until every host ranks by it, {} activations: p50 {:.0} ms, p95 {:.0} ms, max {:.0} ms",
        reach_ms.len(),
        percentile(reach_ms, 0.5),
        percentile(reach_ms, 0.95),
        percentile(reach_ms, 1.0)
    );
}

async fn load(hosts: &[Host], per_second: usize, length: Duration) -> anyhow::Result<Report> {
    let loads: anyhow::Result<Vec<_>> = hosts.iter().map(|host| host.feed_load(VIEWERS)).collect();
    let loads = loads?;
    let paced = loads.iter().map(|load| pace(load, per_second, length));
    Ok(Report::together(try_join_all(paced).await?))
}

/// Activates two policies in turn, on each host in turn. Returns for each activation the time in
/// milliseconds until all hosts ranked with it.
async fn swap(hosts: &[Host], length: Duration) -> anyhow::Result<Vec<f64>> {
    let (begun, mut reach_ms) = (Instant::now(), Vec::new());
    let mut host = hosts.iter().cycle();
    let mut at = 0;
    while begun.elapsed() + SWAP_INTERVAL <= length {
        let next = host.next().context("no host")?;
        let policy = match next.ranking_policy(WATCHER).await?.as_str() {
            "baseline" => "decay-diversity",
            _ => "baseline",
        };
        let asked = Instant::now();
        next.activate(policy).await?;
        try_join_all(hosts.iter().map(|host| ranks_by(host, policy))).await?;
        reach_ms.push(asked.elapsed().as_secs_f64() * 1_000.0);
        at += 1;
        tokio::time::sleep_until((begun + SWAP_INTERVAL * at).into()).await;
    }
    Ok(reach_ms)
}

async fn ranks_by(host: &Host, policy: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let ranked_by = host.ranking_policy(WATCHER).await?;
        if ranked_by == policy {
            return Ok(());
        }
        anyhow::ensure!(
            begun.elapsed() < NOTICED_WITHIN,
            "a host still ranks with {ranked_by} instead of {policy}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
