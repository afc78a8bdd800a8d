//! Replay of recorded rankings of a demo: measures requests per second and checks that every bit
//! is the same.

use crate::generator::{pace, run};
use crate::host::Host;
use crate::services::nova;
use crate::{CONNECTIONS, WARM_UP, machine};
use anyhow::Context;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// The demo's whole community.
const VIEWERS: u64 = 300;
const SLICE: Duration = Duration::from_secs(1);
const REPLAYS: usize = 3;

pub async fn replay(records: u64) -> anyhow::Result<()> {
    let host = Host::start(&[
        ("NOVA_ENABLE_CACHING", "false"),
        ("NOVA_RECORD_SAMPLE_RATIO", "1"),
        ("NOVA_RECORD_BYTES_MAX", "4294967296"),
    ])?;
    let feed = host.feed_load(VIEWERS)?;
    let outcome = async |outcome: &str| {
        let label = format!("outcome=\"{outcome}\"");
        host.metric("nova_feed_records_total", &label).await
    };
    println!("machine: {}; recording {records} rankings", machine());
    while outcome("written").await? < records as f64 {
        let report = run(&feed, CONNECTIONS, SLICE).await?;
        anyhow::ensure!(report.failures == 0, "{} feeds failed", report.failures);
    }
    // Wait for the records that are still in the queue.
    pace(&feed, 1, WARM_UP).await?;
    println!(
        "{:.0} written, {:.0} dropped because the queue was full, {:.1} MiB",
        outcome("written").await?,
        outcome("queue_full").await?,
        host.metric("nova_feed_records_bytes", "").await? / f64::from(1 << 20)
    );
    for arguments in [&[][..], &["decay-diversity@1.0.0"][..]] {
        for _ in 0..REPLAYS {
            print(&replayed(host.data_dir(), records, arguments)?);
        }
    }
    Ok(())
}

/// Runs `nova policy replay` over the newest records and returns its report.
fn replayed(data_dir: &Path, records: u64, policies: &[&str]) -> anyhow::Result<Value> {
    let output = nova()
        .args(["policy", "replay", "--json", "--limit"])
        .arg(records.to_string())
        .arg("--data-dir")
        .arg(data_dir)
        .args(policies)
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(output.status.success(), "the replay failed");
    serde_json::from_slice(&output.stdout).context("no report")
}

fn print(report: &Value) {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let (check, policies) = (&report["check"], &report["policies"]);
    println!(
        "{} checked, {} exact, {:.0} requests/s on {} threads; a ranking p50 {:.0} µs, p99 {:.0} µs{}",
        check["checked"],
        check["exact"],
        number(&report["requests_per_second"]),
        report["threads"],
        number(&check["latency_us"]["p50"]),
        number(&check["latency_us"]["p99"]),
        if policies[0].is_null() {
            String::new()
        } else {
            format!("; compared with {}", policies[0]["policy"])
        }
    );
}
