//! Periodic jobs, and the leases under which they run. A job that fails does not stop the others,
//! and every run is counted and timed.
//!
//! Work for all hosts is done by the host that holds the job's lease. Work on a host's own
//! memory is done by every host.

mod config_reload;
mod daily_report;
mod error_budgets;
mod expiry;
mod policy_memory;
mod pools;
pub mod profile;
mod suggestions;
mod trending;
mod warming;

pub use config_reload::ConfigFile;
pub use pools::PoolSample;

use crate::app::App;
use crate::logging::Logging;
use nova_stores::embedded::EmbeddedStore;
use nova_stores::ports::Lease;
use nova_support::metrics::METRICS;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{Instant as Deadline, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

const RATE_LIMITS_INTERVAL: Duration = Duration::from_secs(60);
const EXPIRY_INTERVAL: Duration = Duration::from_secs(600);
const CONFIG_INTERVAL: Duration = Duration::from_secs(1);
/// Refresh interval of the trending lists. A list lives for 60 s. It is refreshed earlier,
/// because otherwise every host would query the store itself for a moment in each minute.
const TRENDING_INTERVAL: Duration = Duration::from_secs(45);
const SUGGESTIONS_INTERVAL: Duration = Duration::from_secs(300);
const WARMING_INTERVAL: Duration = Duration::from_secs(60);
/// Interval at which the job checks if the daily report is due.
const DAILY_INTERVAL: Duration = Duration::from_secs(60);
/// A viewer who was served within this time counts as active.
const ACTIVE_MS: u64 = 3_600_000;

/// Dependencies of the jobs.
#[derive(Debug)]
pub struct Jobs {
    pub app: Arc<App>,
    /// The embedded store, if there is one. This process deletes its expired rows.
    pub embedded: Option<EmbeddedStore>,
    pub logging: Option<Arc<Logging>>,
    pub config: Option<ConfigFile>,
}

/// Starts every job. They end with the host.
pub fn start(jobs: Jobs) {
    let Jobs {
        app,
        embedded,
        logging,
        config,
    } = jobs;
    let limits = app.clone();
    every("rate_limits", RATE_LIMITS_INTERVAL, move || {
        let app = limits.clone();
        async move {
            app.rate_limits.load().retain_recent();
            Ok(Outcome::Done)
        }
    });
    if let Some(store) = embedded {
        every("expiry", EXPIRY_INTERVAL, move || {
            expiry::run(store.clone())
        });
    }
    for_all_hosts("trending", TRENDING_INTERVAL, &app, trending::run);
    for_all_hosts("suggestions", SUGGESTIONS_INTERVAL, &app, suggestions::run);
    for_all_hosts("warming", WARMING_INTERVAL, &app, warming::run);
    tokio::spawn(error_budgets::enforce(app.clone()));
    tokio::spawn(policy_memory::run(app.clone()));
    let reported = app.clone();
    every("daily_report", DAILY_INTERVAL, move || {
        daily_report::run(reported.clone())
    });
    if let Some(file) = config {
        tokio::spawn(config_reload::follow(file, app, logging, CONFIG_INTERVAL));
    }
}

/// Result of a run that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Another host holds the lease, or the job is not due yet.
    NotOurs,
}

/// Starts a job that only one of several hosts runs. The lease is renewed during a run and lasts
/// a little longer than the interval, so that the same host continues, and another host takes
/// over within two intervals if it dies.
fn for_all_hosts<R>(
    job: &'static str,
    interval: Duration,
    app: &Arc<App>,
    run: impl Fn(Arc<App>) -> R + Send + Copy + 'static,
) where
    R: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let app = app.clone();
    every(job, interval, move || {
        let app = app.clone();
        async move {
            let lease = app.stores.lease.clone();
            let ttl = interval + interval / 2;
            if !lease.hold(job, ttl).await? {
                return Ok(Outcome::NotOurs);
            }
            let _renewed = AbortOnDropHandle::new(tokio::spawn(renew(lease, job, ttl)));
            run(app).await?;
            Ok(Outcome::Done)
        }
    });
}

/// Renews the lease until the task is aborted. If a renewal fails, another host may do the same
/// work.
async fn renew(lease: Arc<dyn Lease>, job: &'static str, ttl: Duration) {
    loop {
        tokio::time::sleep(ttl / 3).await;
        if let Err(error) = lease.hold(job, ttl).await {
            tracing::warn!(job, %error, "could not renew a job's lease; another host may run the job too");
        }
    }
}

fn every<F, R>(job: &'static str, interval: Duration, mut run: F)
where
    F: FnMut() -> R + Send + 'static,
    R: Future<Output = anyhow::Result<Outcome>> + Send,
{
    tokio::spawn(async move {
        let mut times = tokio::time::interval_at(Deadline::now() + interval, interval);
        // After a run that took longer than the interval, one run follows at once; the other
        // missed runs are skipped.
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            times.tick().await;
            let started = Instant::now();
            let outcome = run().await;
            let label = match &outcome {
                // A run that found nothing to do is not counted.
                Ok(Outcome::NotOurs) => continue,
                Ok(Outcome::Done) => "ok",
                Err(_) => "error",
            };
            METRICS
                .job_duration_seconds
                .with_label_values(&[job])
                .observe(started.elapsed().as_secs_f64());
            METRICS
                .job_runs_total
                .with_label_values(&[job, label])
                .inc();
            if let Err(error) = outcome {
                tracing::error!(
                    job,
                    error = format!("{error:#}"),
                    "a job failed; it runs again at its next time"
                );
            }
        }
    });
}
