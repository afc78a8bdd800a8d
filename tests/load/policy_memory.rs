//! Resident memory under the worst mix of policies that admission accepts: each may use 256 MiB
//! for one instance, and keeps its instances.

use crate::generator::run;
use crate::host::Host;
use crate::{CONNECTIONS, machine};
use std::time::Duration;

const BUDGET_MB: u32 = 1_024;
const POLICIES: u32 = 4;
const HELD_MIB: u32 = 240;
const VIEWERS: u64 = 256;
const SLICE: Duration = Duration::from_secs(10);
const SLICES: usize = 3;

pub async fn policy_memory() -> anyhow::Result<()> {
    println!(
        "machine: {}; policy.memory_mb = {BUDGET_MB}, {POLICIES} policies that write to {HELD_MIB} MiB for each ranking, instance = \"reuse\"",
        machine()
    );
    let host = Host::start(&[
        ("NOVA_SNAPSHOT_TTL_S", "0"),
        ("NOVA_POLICY_MEMORY_MB", &BUDGET_MB.to_string()),
        ("NOVA_POLICY_DEADLINE_MS_MAX", "1000"),
        ("NOVA_POLICY_CPU_PERCENT", "100"),
        ("NOVA_FAILURE_BUDGET_MIN_FAILURES", "1000000"),
        ("NOVA_FAILURE_BUDGET_P99_FACTOR", "0"),
    ])?;
    let feed = host.feed_load(VIEWERS)?;
    run(&feed, CONNECTIONS, SLICE).await?;
    let before = host.resident_mb()?;
    println!("with the bundled policies alone: {before:.0} MiB");
    host.run_guests("holds_memory", POLICIES, &format!("mib = {HELD_MIB}.0"))
        .await?;
    let mut most = 0.0_f64;
    for slice in 1..=SLICES {
        let load = run(&feed, CONNECTIONS, SLICE);
        let watch = async {
            let mut most = 0.0_f64;
            for _ in 0..SLICE.as_millis() / 100 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                most = most.max(host.resident_mb()?);
            }
            anyhow::Ok(most)
        };
        let (report, seen) = tokio::join!(load, watch);
        let (report, seen) = (report?, seen?);
        most = most.max(seen);
        println!(
            "{:>4} s: at most {seen:.0} MiB resident, {:.0} MiB reserved, {:.0} rankings got no memory, {:.0} req/s, {} failed",
            slice as u64 * SLICE.as_secs(),
            host.metric("nova_feed_policy_memory_used_bytes", "")
                .await?
                / 1_048_576.0,
            host.metric("nova_feed_policy_memory_refused_total", "")
                .await?,
            report.per_second(),
            report.failures
        );
    }
    println!(
        "most: {most:.0} MiB, {:.0} MiB more than before, {:.2} of the budget",
        most - before,
        (most - before) / f64::from(BUDGET_MB)
    );
    tokio::time::sleep(Duration::from_secs(70)).await;
    println!("after 70 s without load: {:.0} MiB", host.resident_mb()?);
    Ok(())
}
