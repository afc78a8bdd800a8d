//! Upkeep of the policies' memory: drops instances that nobody uses, and exports the use of the
//! memory budget.

use crate::app::App;
use nova_policy::memory::IDLE_AGE_MAX;
use nova_support::metrics::METRICS;
use std::sync::Arc;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(5);

pub async fn run(app: Arc<App>) {
    let mut times = tokio::time::interval(INTERVAL);
    loop {
        times.tick().await;
        let memory = app.deploy.engine().memory().clone();
        // Instances are unmapped, which may take milliseconds.
        let expired =
            tokio::task::spawn_blocking(move || memory.expire_idle(Instant::now(), IDLE_AGE_MAX));
        if let Err(error) = expired.await {
            tracing::error!(%error, "could not drop idle instances of policies; trying again");
        }
        export(&app);
    }
}

fn export(app: &App) {
    let usage = app.deploy.engine().memory().usage();
    let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    METRICS.policy_memory_budget_bytes.set(gauge(usage.budget));
    METRICS.policy_memory_used_bytes.set(gauge(usage.used));
    METRICS.policy_memory_idle_bytes.set(gauge(usage.idle));
    let refused = &METRICS.policy_memory_refused_total;
    refused.inc_by(usage.refused.saturating_sub(refused.get()));
    // A policy that no longer serves has no series.
    METRICS.policy_memory_bytes.reset();
    for policy in app.deploy.serving().in_service() {
        METRICS
            .policy_memory_bytes
            .with_label_values(&[&policy.spec.policy.to_string()])
            .set(gauge(policy.instance_bytes()));
    }
}
