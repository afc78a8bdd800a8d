//! Periodic work. A job that fails does not stop the others, and each run is counted and timed.

mod config_reload;
mod expiry;

pub use config_reload::ConfigFile;

use crate::app::App;
use crate::logging::Logging;
use crate::metrics::METRICS;
use crate::stores::embedded::EmbeddedStore;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

const RATE_LIMITS_INTERVAL: Duration = Duration::from_secs(60);
const EXPIRY_INTERVAL: Duration = Duration::from_secs(600);
const CONFIG_INTERVAL: Duration = Duration::from_secs(1);

/// Starts every job; they end with the host.
pub fn start(
    app: &Arc<App>,
    store: EmbeddedStore,
    logging: Option<Arc<Logging>>,
    config: Option<ConfigFile>,
) {
    let limits = app.clone();
    every("rate_limits", RATE_LIMITS_INTERVAL, move || {
        let app = limits.clone();
        async move {
            app.rate_limits.load().retain_recent();
            Ok(())
        }
    });
    every("expiry", EXPIRY_INTERVAL, move || {
        expiry::run(store.clone())
    });
    if let Some(file) = config {
        tokio::spawn(config_reload::follow(
            file,
            app.clone(),
            logging,
            CONFIG_INTERVAL,
        ));
    }
}

fn every<F, R>(job: &'static str, interval: Duration, mut run: F)
where
    F: FnMut() -> R + Send + 'static,
    R: Future<Output = anyhow::Result<()>> + Send,
{
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(interval).await;
            let started = Instant::now();
            let outcome = run().await;
            METRICS
                .job_duration_seconds
                .with_label_values(&[job])
                .observe(started.elapsed().as_secs_f64());
            let label = if outcome.is_ok() { "ok" } else { "error" };
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
