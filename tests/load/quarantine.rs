//! A policy that serves a thousand viewers well and then traps for every viewer: measures the
//! effect on viewers and its duration.

use crate::generator::{Answer, Load, pace, pace_looking};
use crate::host::Host;
use crate::machine;
use serde_json::Value;
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// The smallest viewer id for which the guest traps.
const FIRST_VICTIM: u64 = 1_000_000;
const GOOD_CALLS: usize = 1_000;
const PER_SECOND: usize = 200;
const LENGTH: Duration = Duration::from_secs(10);
const RUNS: usize = 5;

/// Times and counts of one run, from the first failure on.
#[derive(Debug, Default)]
struct Seen {
    first_failed: Option<Instant>,
    last_failed: Option<Instant>,
    first_good_again: Option<Instant>,
    failed: usize,
    errors: usize,
}

impl Seen {
    fn look(&mut self, answer: &Answer<'_>) {
        let feed: Value = serde_json::from_slice(answer.body).unwrap_or_default();
        let whole = feed["posts"]
            .as_array()
            .is_some_and(|posts| !posts.is_empty());
        if answer.status != 200 || !whole {
            self.errors += 1;
        }
        if feed["degraded"] != serde_json::json!([]) {
            self.failed += 1;
            self.first_failed = self.first_failed.or(Some(answer.at));
            self.last_failed = Some(answer.at);
            self.first_good_again = None;
        } else if self.first_failed.is_some() {
            self.first_good_again = self.first_good_again.or(Some(answer.at));
        }
    }
}

pub async fn quarantine() -> anyhow::Result<()> {
    println!(
        "machine: {}; {GOOD_CALLS} good calls, then {PER_SECOND} feeds/s of viewers for whom the active policy traps",
        machine()
    );
    for _ in 0..RUNS {
        // Without snapshots every request ranks. With them, the bad policy would be called less
        // often.
        let host = Host::start(&[("NOVA_SNAPSHOT_TTL_S", "0")])?;
        host.publish_guest(
            "misbehaves_from",
            &format!("first_victim = {FIRST_VICTIM}.0"),
        )?;
        host.activate_version("misbehaves_from", "1.0.0").await?;
        let good = host.feed_load(300)?;
        let length = Duration::from_secs((GOOD_CALLS / PER_SECOND) as u64);
        let before = pace(&good, PER_SECOND, length).await?;
        let victims = host.path_load("/api/v1/feed", FIRST_VICTIM..FIRST_VICTIM + 300)?;
        report(&host, &victims, before.percentile_ms(0.99)).await?;
    }
    Ok(())
}

async fn report(host: &Host, victims: &Load, p99_before_ms: f64) -> anyhow::Result<()> {
    let seen = RefCell::new(Seen::default());
    let look = |answer: Answer<'_>| seen.borrow_mut().look(&answer);
    let report = pace_looking(victims, PER_SECOND, LENGTH, look).await?;
    let seen = seen.into_inner();
    let ms = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
        (Some(from), Some(to)) => format!("{:.0} ms", (to - from).as_secs_f64() * 1_000.0),
        _ => "never".to_owned(),
    };
    println!(
        "{} of {} feeds met the failure, {} errors; first to last degraded response {}, first degraded to first complete response {}; p99 {:.1} ms before, {:.1} ms with it; now {}",
        seen.failed,
        (PER_SECOND as u64) * LENGTH.as_secs(),
        seen.errors,
        ms(seen.first_failed, seen.last_failed),
        ms(seen.first_failed, seen.first_good_again),
        p99_before_ms,
        report.percentile_ms(0.99),
        host.ranking_policy(7).await?
    );
    Ok(())
}
