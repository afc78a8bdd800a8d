//! Computes suggestions for the viewers who are active, so that they find them ready.

use super::ACTIVE_MS;
use crate::app::App;
use crate::clock::unix_ms;
use std::sync::Arc;
use std::time::Duration;

const VIEWERS_MAX: u32 = 1_000;
/// A job has more time than a viewer who waits.
const TIMEOUT: Duration = Duration::from_secs(5);

pub async fn run(app: Arc<App>) -> anyhow::Result<()> {
    let since_ms = unix_ms().saturating_sub(ACTIVE_MS);
    let viewers = app
        .stores
        .exposures
        .active_viewers(since_ms, VIEWERS_MAX)
        .await?;
    let ttl = Duration::from_secs(app.live().ttl.suggestions_s);
    // One after the other: nobody waits for this, and viewers' own requests share the store.
    for viewer in viewers {
        app.suggestions.compute(viewer, ttl, TIMEOUT).await?;
    }
    Ok(())
}
