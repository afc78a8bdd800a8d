//! Snapshots of the feed: finding a fresh one, continuing one, and keeping a new ranking.

use super::Feed;
use super::cursor::Cursor;
use super::page::{FeedPage, page};
use super::ranked_feed::RankedFeed;
use super::request::{FeedError, FeedRequest};
use crate::experiments::exposure;
use nova_model::artifact::Digest;
use nova_model::snapshot::Snapshot;
use nova_stores::guard;
use std::sync::Arc;

/// Serves page two and later from the snapshot of the first page, even if the policy or the data
/// have changed since.
pub async fn continue_snapshot(
    feed: &Feed,
    cursor: Cursor,
    limit: usize,
) -> Result<FeedPage, FeedError> {
    match feed.stores().cache.snapshot(cursor.ranking_id).await {
        Ok(Some(snapshot)) => Ok(page(
            snapshot,
            &feed.parts.cursor_key,
            &feed.deleted.current(),
            cursor.position as usize,
            limit,
            true,
        )),
        Ok(None) => Err(FeedError::CursorExpired),
        Err(error) => {
            tracing::warn!(%error, "could not read a cursor's snapshot; answering 503");
            Err(FeedError::Unavailable)
        }
    }
}

/// Returns the cached ranking of the same viewer and effective digest, if it is young enough and
/// complete and the viewer has seen no new post since.
pub async fn fresh_snapshot(feed: &Feed, viewer: u64, digest: Digest) -> Option<Arc<Snapshot>> {
    let ttl = feed.live().ttl.snapshot();
    let lookups = futures::future::join(
        feed.stores().seen.version(viewer),
        feed.stores().cache.latest_snapshot(viewer, digest),
    );
    let (seen_version, found) = guard::within(feed.store_timeout(), lookups).await.ok()?;
    let fresh = match (seen_version, found) {
        (Ok(seen_version), Ok(found)) => found.filter(|snapshot| {
            snapshot.created.elapsed() <= ttl
                && snapshot.seen_version == seen_version
                && snapshot.degraded.is_empty()
        }),
        _ => None,
    };
    feed.snapshot_cache.count(fresh.is_some());
    fresh
}

/// Stores a ranking as a snapshot, records that it was served, and returns its first page.
pub async fn keep(feed: &Feed, request: &FeedRequest, ranked: RankedFeed) -> FeedPage {
    let (cache_hit, epoch) = (ranked.cache_hit, ranked.epoch);
    let snapshot = Arc::new(ranked.into_snapshot(request.viewer));
    // If the viewer interacted while this was being ranked, serve it but do not cache it as the
    // viewer's latest ranking.
    let cache = &feed.stores().cache;
    if let Err(error) = cache.put_snapshot(snapshot.clone(), epoch).await {
        tracing::warn!(%error, "could not store a snapshot; its later pages will be missing");
    }
    feed.parts
        .exposures
        .record(exposure::from_snapshot(&snapshot, &request.request_id));
    first_page(feed, snapshot, request.limit, cache_hit)
}

pub fn first_page(feed: &Feed, snapshot: Arc<Snapshot>, limit: usize, cache_hit: bool) -> FeedPage {
    let (key, deleted) = (&feed.parts.cursor_key, feed.deleted.current());
    page(snapshot, key, &deleted, 0, limit, cache_hit)
}
