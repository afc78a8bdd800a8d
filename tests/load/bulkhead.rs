//! The effect of a slow but legal policy on the viewers of other policies. A fifth of the viewers
//! is in its canary. Rounds with and without it alternate, and only the other viewers count.

use crate::generator::{Answer, fetch, pace_looking, percentile};
use crate::host::Host;
use crate::{ROUNDS, machine, median};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Duration;

const VIEWERS: u64 = 500;
const PER_SECOND: usize = 50;
const PERCENT: f64 = 20.0;
const BURN_MS: f64 = 220.0;
/// Turns of the loop with which the length of a turn is measured.
const TRIAL_MILLION_TURNS: f64 = 20.0;
const LENGTH: Duration = Duration::from_secs(10);
const BURNS: &str = "burns";
/// Without snapshots, every request ranks. The error budget is out of reach, so that the policy
/// stays.
const VARIABLES: [(&str, &str); 3] = [
    ("NOVA_SNAPSHOT_TTL_S", "0"),
    ("NOVA_FAILURE_BUDGET_MIN_FAILURES", "1000000"),
    ("NOVA_FAILURE_BUDGET_P99_FACTOR", "0"),
];

pub async fn bulkhead() -> anyhow::Result<()> {
    println!(
        "machine: {}; {PER_SECOND} rankings/s, {ROUNDS} rounds of {} s each, a canary at {PERCENT} % that burns {BURN_MS} ms for each ranking; viewers outside of the canary",
        machine(),
        LENGTH.as_secs()
    );
    let raised = [("NOVA_POLICY_DEADLINE_MS_MAX", "1000")];
    for (name, variables) in [("deadline_ms_max = 50", &[][..]), ("= 1000", &raised)] {
        measure(name, variables).await?;
    }
    Ok(())
}

/// What viewers outside of the canary saw in one round.
#[derive(Debug, Default)]
struct Seen {
    took_ms: Vec<f64>,
    by_policy: usize,
}

async fn measure(name: &str, variables: &[(&str, &str)]) -> anyhow::Result<()> {
    let variables = [&VARIABLES[..], variables].concat();
    let host = Host::start(&variables)?;
    let million_turns = BURN_MS / ms_per_million_turns().await?;
    publish(&host, million_turns)?;
    let tried = viewers_of_canary(&host).await?;
    println!(
        "{name}: {} of {VIEWERS} viewers in the canary\n{:10} {:>7} {:>9} {:>9} {:>9} {:>11} {:>9}",
        tried.len(),
        "",
        "feeds",
        "p50 ms",
        "p99 ms",
        "max ms",
        "by policy",
        "shed"
    );
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (percent, p99) in [(0.0, &mut alone), (PERCENT, &mut beside)] {
            host.set_canary(BURNS, percent).await?;
            let shed = shed(&host).await?;
            let seen = round(&host, &tried).await?;
            let label = if percent > 0.0 { "canary" } else { "alone" };
            println!(
                "{label:10} {:>7} {:>9.2} {:>9.2} {:>9.2} {:>9.2} % {:>9}",
                seen.took_ms.len(),
                percentile(&seen.took_ms, 0.50),
                percentile(&seen.took_ms, 0.99),
                percentile(&seen.took_ms, 1.0),
                100.0 * seen.by_policy as f64 / seen.took_ms.len() as f64,
                self::shed(&host).await? - shed
            );
            p99.push(percentile(&seen.took_ms, 0.99));
        }
    }
    println!(
        "p99 with the canary / without, medians: {:.2}",
        median(beside) / median(alone)
    );
    Ok(())
}

fn publish(host: &Host, million_turns: f64) -> anyhow::Result<()> {
    host.publish_guest_with(
        BURNS,
        &format!("million_turns = {million_turns:.3}"),
        "[limits]\ndeadline_ms = 1000\n",
    )
}

/// Measures the loop on a host of its own.
async fn ms_per_million_turns() -> anyhow::Result<f64> {
    let host = Host::start(&[
        ("NOVA_SNAPSHOT_TTL_S", "0"),
        ("NOVA_POLICY_DEADLINE_MS_MAX", "1000"),
    ])?;
    publish(&host, TRIAL_MILLION_TURNS)?;
    host.activate_version(BURNS, "1.0.0").await?;
    for viewer in 1..20 {
        host.ranking_policy(viewer).await?;
    }
    let p50_ms = host.p50_ms(BURNS).await?;
    println!("{TRIAL_MILLION_TURNS} million turns take {p50_ms:.1} ms");
    Ok(p50_ms / TRIAL_MILLION_TURNS)
}

/// Returns the viewers whom the canary takes. Without other load, everybody else is served by the
/// active policy.
async fn viewers_of_canary(host: &Host) -> anyhow::Result<HashSet<u64>> {
    host.set_canary(BURNS, PERCENT).await?;
    let mut tried = HashSet::new();
    for viewer in 1..=VIEWERS {
        let token = host.viewer_token(viewer)?;
        let request = host.request("GET", "/api/v1/feed?limit=1", &token, "");
        let feed: Value = serde_json::from_slice(&fetch(host.address(), &request).await?)?;
        if feed["served_by"] != "policy" || feed["policy"]["name"] == BURNS {
            tried.insert(viewer);
        }
    }
    Ok(tried)
}

async fn shed(host: &Host) -> anyhow::Result<f64> {
    const SERIES: &str = "nova_feed_policy_calls_total";
    let share = host
        .metric(SERIES, "outcome=\"cpu_share\",policy=\"burns")
        .await?;
    let pool = host
        .metric(SERIES, "outcome=\"pool\",policy=\"burns")
        .await?;
    Ok(share + pool)
}

async fn round(host: &Host, tried: &HashSet<u64>) -> anyhow::Result<Seen> {
    let load = host.path_load("/api/v1/feed", 1..VIEWERS + 1)?;
    let seen = RefCell::new(Seen::default());
    let look = |answer: Answer<'_>| {
        // The requests are those of the viewers 1, 2, … in turn.
        if tried.contains(&(answer.turn as u64 % VIEWERS + 1)) {
            return;
        }
        let feed: Value = serde_json::from_slice(answer.body).unwrap_or_default();
        let mut seen = seen.borrow_mut();
        seen.took_ms.push(answer.took_ms);
        seen.by_policy += usize::from(answer.status == 200 && feed["served_by"] == "policy");
    };
    let report = pace_looking(&load, PER_SECOND, LENGTH, look).await?;
    anyhow::ensure!(report.failures == 0, "{} feeds failed", report.failures);
    Ok(seen.into_inner())
}
