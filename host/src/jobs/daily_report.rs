//! The daily report: writes yesterday's metrics as CSV at 01:00 UTC, one hour after the day has
//! ended, to `reports/daily-YYYY-MM-DD.csv` in the data directory of the host that runs the job.

use super::Outcome;
use crate::app::App;
use crate::daily::{DailyMetrics, Ratios, metrics};
use anyhow::Context;
use chrono::{Days, Timelike};
use nova_model::time::utc;
use nova_support::clock::unix_ms;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const HOUR_UTC: u32 = 1;
/// Length of the lease while the report is being written. If the host dies meanwhile, another
/// host takes over.
const LEASE: Duration = Duration::from_secs(600);
/// Length of the lease after the report was written. It is long enough that no other host writes
/// a report for the same day, and short enough to have expired before the next one.
const WRITTEN: Duration = Duration::from_secs(23 * 3_600);

pub async fn run(app: Arc<App>) -> anyhow::Result<Outcome> {
    let now = utc(unix_ms());
    let yesterday = now.date_naive().checked_sub_days(Days::new(1));
    let Some(date) = yesterday.filter(|_| now.hour() >= HOUR_UTC) else {
        return Ok(Outcome::NotOurs);
    };
    let path = app
        .config
        .data_dir
        .join("reports")
        .join(format!("daily-{date}.csv"));
    let job = format!("daily_report:{date}");
    if path.exists() || !app.stores.lease.hold(&job, LEASE).await? {
        return Ok(Outcome::NotOurs);
    }
    let written = match metrics(&app.stores, date).await {
        Ok(Some(metrics)) => write(&path, &metrics),
        Ok(None) => Ok(()),
        Err(error) => Err(error.into()),
    };
    match &written {
        Ok(()) => drop(app.stores.lease.hold(&job, WRITTEN).await?),
        // Another host may make the next attempt.
        Err(_) => app.stores.lease.release(&job).await?,
    }
    written.map(|()| Outcome::Done)
}

fn write(path: &Path, metrics: &DailyMetrics) -> anyhow::Result<()> {
    let directory = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    std::fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
    // The file is renamed when it is complete, so readers never see a part of a report.
    let file = tempfile::NamedTempFile::new_in(&directory)?;
    let mut csv = csv::Writer::from_writer(&file);
    csv.write_record(COLUMNS)?;
    csv.write_record(record(metrics, "all", &metrics.all))?;
    for policy in &metrics.by_policy {
        csv.write_record(record(metrics, &policy.digest, &policy.ratios))?;
    }
    csv.flush()?;
    drop(csv);
    file.persist(path)
        .with_context(|| format!("{}", path.display()))?;
    Ok(())
}

const COLUMNS: [&str; 8] = [
    "date",
    "policy_digest",
    "ctr",
    "dwell_p50_ms",
    "dwell_p95_ms",
    "recommendation_ctr",
    "dedup_rate",
    "system_health",
];

/// Returns one row of the report. A ratio without a denominator is an empty field.
fn record(metrics: &DailyMetrics, digest: &str, ratios: &Ratios) -> [String; 8] {
    let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    [
        metrics.date.to_string(),
        digest.to_owned(),
        number(ratios.ctr),
        number(ratios.dwell_p50),
        number(ratios.dwell_p95),
        number(ratios.recommendation_ctr),
        number(ratios.dedup_rate),
        number(ratios.system_health),
    ]
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::daily::PolicyRatios;

    #[test]
    fn a_report_has_a_line_for_all_and_one_for_each_policy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reports/daily-2026-01-31.csv");
        let ratios = Ratios {
            ctr: Some(0.25),
            dwell_p50: Some(1_200.0),
            dwell_p95: None,
            recommendation_ctr: None,
            dedup_rate: Some(1.0),
            system_health: Some(0.5),
        };
        let metrics = DailyMetrics {
            date: chrono::NaiveDate::from_ymd_opt(2026, 1, 31).unwrap(),
            all: ratios.clone(),
            by_policy: vec![PolicyRatios {
                digest: "ab".to_owned(),
                ratios,
            }],
        };
        write(&path, &metrics).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "date,policy_digest,ctr,dwell_p50_ms,dwell_p95_ms,recommendation_ctr,dedup_rate,system_health\n\
             2026-01-31,all,0.25,1200,,,1,0.5\n2026-01-31,ab,0.25,1200,,,1,0.5\n"
        );
    }
}
