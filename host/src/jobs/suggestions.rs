//! Precomputation of suggestions for active viewers, so that their requests find a cached list.

use super::ACTIVE_MS;
use crate::app::App;
use nova_support::clock::unix_ms;
use std::sync::Arc;
use std::time::Duration;

const VIEWERS_MAX: u32 = 1_000;
/// Timeout of one viewer's computation. It equals the time that the store grants to queries of
/// waiting viewers.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Number of failures in a row that end the run. So many failures mean that the store is slow,
/// not the viewers' queries.
const FAILURES_MAX: u32 = 3;

pub async fn run(app: Arc<App>) -> anyhow::Result<()> {
    let since_ms = unix_ms().saturating_sub(ACTIVE_MS);
    let viewers = app
        .stores
        .exposures
        .active_viewers(since_ms, VIEWERS_MAX)
        .await?;
    let ttl = Duration::from_secs(app.live().ttl.suggestions_s);
    // One viewer after the other, because no request waits for the results and viewers' own
    // requests use the same store.
    let mut failures = 0;
    for viewer in viewers {
        match app.suggestions.compute(viewer, ttl, TIMEOUT).await {
            Ok(_) => failures = 0,
            Err(error) => {
                failures += 1;
                if failures == FAILURES_MAX {
                    return Err(error.into());
                }
                tracing::warn!(viewer, %error, "could not compute a viewer's suggestions; going on with the next viewer");
            }
        }
    }
    Ok(())
}
