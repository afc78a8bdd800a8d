//! Looks whether a policy has spent its failure budget. Every host does so for itself: a policy that
//! fails here must stop here, whatever the others see.

use crate::app::App;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Much less than the two seconds within which a policy that fails is to be gone; a look at a dozen
/// windows takes microseconds.
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
