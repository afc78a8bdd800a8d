//! Periodic work. A job that fails does not stop the others, and each run is counted and timed.
//!
//! Work for all hosts is done by one of them: the one that holds the job's lease. Work on a host's
//! own memory is done by every host.

mod config_reload;
mod daily_report;
mod expiry;
mod failure_budgets;
mod pools;
pub mod profile;
mod suggestions;
mod trending;
mod warming;

pub use config_reload::ConfigFile;
pub use pools::PoolSample;

use crate::app::App;
use crate::logging::Logging;
use crate::metrics::METRICS;
use crate::stores::Lease;
use crate::stores::embedded::EmbeddedStore;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{Instant as Deadline, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

const RATE_LIMITS_INTERVAL: Duration = Duration::from_secs(60);
const EXPIRY_INTERVAL: Duration = Duration::from_secs(600);
const CONFIG_INTERVAL: Duration = Duration::from_secs(1);
/// A list lives for 60 s: it is renewed before that, or each minute would have a moment in which every host asks for itself.
const TRENDING_INTERVAL: Duration = Duration::from_secs(45);
const SUGGESTIONS_INTERVAL: Duration = Duration::from_secs(300);
const WARMING_INTERVAL: Duration = Duration::from_secs(60);
/// How often the clock is asked whether the day's report is due.
const DAILY_INTERVAL: Duration = Duration::from_secs(60);
/// Who was served in this time is active.
const ACTIVE_MS: u64 = 3_600_000;

/// What the jobs work on.
#[derive(Debug)]
pub struct Jobs {
    pub app: Arc<App>,
    /// Expired by this process, where there is an embedded store.
    pub embedded: Option<EmbeddedStore>,
    pub logging: Option<Arc<Logging>>,
    pub config: Option<ConfigFile>,
}

/// Starts every job; they end with the host.
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
    tokio::spawn(failure_budgets::enforce(app.clone()));
    let reported = app.clone();
    every("daily_report", DAILY_INTERVAL, move || {
        daily_report::run(reported.clone())
    });
    if let Some(file) = config {
        tokio::spawn(config_reload::follow(file, app, logging, CONFIG_INTERVAL));
    }
}

/// What a run came to when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Another host has the lease, or it is not time yet.
    NotOurs,
}

/// A job that one host of many runs. The lease is renewed while it runs and outlives a run by a little, so that the same
/// host goes on, and another takes over within two intervals when it dies.
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

/// Until it is aborted. A renewal that fails costs another host the same work.
async fn renew(lease: Arc<dyn Lease>, job: &'static str, ttl: Duration) {
    loop {
        tokio::time::sleep(ttl / 3).await;
        if let Err(error) = lease.hold(job, ttl).await {
            tracing::warn!(job, %error, "a lease cannot be renewed");
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
        // A run that took longer than the interval is followed by the next one at once, and not by all that it missed.
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            times.tick().await;
            let started = Instant::now();
            let outcome = run().await;
            let label = match &outcome {
                // Looking at the clock is no run.
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
