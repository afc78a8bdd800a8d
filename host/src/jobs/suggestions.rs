//! Computes suggestions for the viewers who are active, so that they find them ready.

use super::ACTIVE_MS;
use crate::app::App;
use crate::clock::unix_ms;
use std::sync::Arc;
use std::time::Duration;

const VIEWERS_MAX: u32 = 1_000;
/// As long as the store gives any query that viewers may wait for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// As many viewers in a row without an answer are not slow viewers, but a slow store.
const FAILURES_MAX: u32 = 3;

pub async fn run(app: Arc<App>) -> anyhow::Result<()> {
    let since_ms = unix_ms().saturating_sub(ACTIVE_MS);
    let viewers = app
        .stores
        .exposures
        .active_viewers(since_ms, VIEWERS_MAX)
        .await?;
    let ttl = Duration::from_secs(app.live().ttl.suggestions_s);
    // One after the other: nobody waits for this, and viewers' own requests share the store.
    let mut failures = 0;
    for viewer in viewers {
        match app.suggestions.compute(viewer, ttl, TIMEOUT).await {
            Ok(_) => failures = 0,
            Err(error) => {
                failures += 1;
                if failures == FAILURES_MAX {
                    return Err(error.into());
                }
                tracing::warn!(viewer, %error, "suggestions of a viewer");
            }
        }
    }
    Ok(())
}
