//! Warming of the candidate cache for the most active viewers.

use super::ACTIVE_MS;
use crate::app::App;
use crate::feed::cached_candidates::warm;
use futures::StreamExt as _;
use nova_support::clock::unix_ms;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const VIEWERS_MAX: u32 = 1_000;
/// Number of viewers warmed at the same time. It is small, so that the store stays free for
/// waiting viewers.
const CONCURRENT: usize = 2;

pub async fn run(app: Arc<App>) -> anyhow::Result<()> {
    if !app.flags().enable_caching {
        return Ok(());
    }
    let since_ms = unix_ms().saturating_sub(ACTIVE_MS);
    let viewers = app
        .stores
        .exposures
        .active_viewers(since_ms, VIEWERS_MAX)
        .await?;
    let (asked, failed) = (viewers.len(), AtomicUsize::new(0));
    futures::stream::iter(viewers)
        .for_each_concurrent(CONCURRENT, |viewer| {
            let (app, failed) = (app.clone(), &failed);
            async move {
                if !warm(&app.feed, viewer).await {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
        .await;
    let failed = failed.into_inner();
    anyhow::ensure!(
        failed == 0,
        "could not refresh the cached candidates of {failed} of {asked} active viewers"
    );
    Ok(())
}
