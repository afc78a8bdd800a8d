//! Enforcement of error budgets: takes a policy out of service when it has spent its budget.
//! Every host decides for itself, because a policy that fails on one host must stop there, even
//! if it works on the others.

use crate::app::App;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Check interval. It is much shorter than the two seconds within which a failing policy must be
/// out of service. Checking a dozen windows takes microseconds.
const INTERVAL: Duration = Duration::from_millis(200);

pub async fn enforce(app: Arc<App>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let thresholds = app.live().failure_budget.thresholds();
        app.deploy
            .enforce_budgets(&thresholds, Instant::now())
            .await;
    }
}
