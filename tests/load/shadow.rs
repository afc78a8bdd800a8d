//! The effect of a policy in shadow on viewers, when the shadow runs at every ranking. Rounds
//! with and without it alternate.

use crate::generator::{Report, pace};
use crate::host::Host;
use crate::{ROUND, ROUNDS, VIEWERS, WARM_UP, machine, median};

const POLICY: &str = "decay-diversity";

/// Without snapshots, every request ranks again from cached candidates. With them, a shadow
/// would have almost nothing to do.
const VARIABLES: [(&str, &str); 1] = [("NOVA_SNAPSHOT_TTL_S", "0")];

pub async fn shadow(per_second: usize) -> anyhow::Result<()> {
    let host = Host::start(&VARIABLES)?;
    let feed = host.feed_load(VIEWERS)?;
    pace(&feed, per_second, WARM_UP).await?;
    println!(
        "machine: {}; {per_second} rankings/s, {ROUNDS} rounds of {} s each, {POLICY} in shadow",
        machine(),
        ROUND.as_secs()
    );
    println!(
        "{:12} {:>9} {:>9} {:>9} {:>7} {:>10} {:>9}",
        "", "p50 ms", "p99 ms", "max ms", "failed", "shadow ran", "dropped"
    );
    let (mut quiet, mut shadowed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let report = pace(&feed, per_second, ROUND).await?;
        print("alone", &report, 0.0, 0.0);
        quiet.push(report.percentile_ms(0.99));

        host.set_shadow(POLICY, true).await?;
        pace(&feed, per_second, WARM_UP).await?;
        let before = runs(&host).await?;
        let report = pace(&feed, per_second, ROUND).await?;
        let after = runs(&host).await?;
        host.set_shadow(POLICY, false).await?;
        print("shadowed", &report, after.0 - before.0, after.1 - before.1);
        shadowed.push(report.percentile_ms(0.99));
    }
    println!(
        "p99 with a shadow / without, medians: {:.3}",
        median(shadowed) / median(quiet)
    );
    Ok(())
}

/// Returns the numbers of runs and of dropped runs so far.
async fn runs(host: &Host) -> anyhow::Result<(f64, f64)> {
    const SERIES: &str = "nova_feed_shadow_runs_total";
    let all = host.metric(SERIES, POLICY).await?;
    let dropped = host.metric(SERIES, "outcome=\"dropped\"").await?;
    Ok((all - dropped, dropped))
}

fn print(name: &str, report: &Report, ran: f64, dropped: f64) {
    println!(
        "{name:12} {:>9.2} {:>9.2} {:>9.2} {:>7} {ran:>10.0} {dropped:>9.0}",
        report.percentile_ms(0.50),
        report.percentile_ms(0.99),
        report.percentile_ms(1.0),
        report.failures
    );
}
