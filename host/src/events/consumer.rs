//! From the spool to the aggregates, embedded: read a batch, write it in one transaction that also
//! records how far it got, forget it. A crash between any two steps repeats a step that then changes nothing.

use super::spool::{Entry, Spool};
use crate::clock::unix_ms;
use crate::metrics::METRICS;
use crate::stores::{AcceptedEvent, EventSink};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Small enough to hold the store's writer for a few milliseconds only.
const BATCH_EVENTS: u32 = 1_000;
/// The safety net behind the spool's notification.
const IDLE_WAIT: Duration = Duration::from_millis(500);
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Told of events once they are counted.
pub type Counted = Arc<dyn Fn(&[AcceptedEvent]) + Send + Sync>;

/// Drains the spool until told to stop; then until it is empty or `stop` has been set for `flush`.
pub async fn run(
    spool: Spool,
    sink: Arc<dyn EventSink>,
    counted: Counted,
    stop: CancellationToken,
    flush: Duration,
) {
    let draining = async {
        loop {
            match drain_batch(&spool, sink.as_ref(), &counted).await {
                Ok(0) if stop.is_cancelled() => return,
                Ok(0) => {
                    tokio::select! {
                        () = spool.written() => {}
                        () = tokio::time::sleep(IDLE_WAIT) => {}
                        () = stop.cancelled() => {}
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "accepted events cannot be counted yet; they stay in the spool"
                    );
                    tokio::time::sleep(RETRY_WAIT).await;
                }
            }
        }
    };
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(flush).await;
    };
    tokio::select! {
        () = draining => {}
        () = deadline => tracing::warn!(events = spool.pending(), "stopping with events in the spool; the next start counts them"),
    }
}

async fn drain_batch(
    spool: &Spool,
    sink: &dyn EventSink,
    counted: &Counted,
) -> anyhow::Result<usize> {
    let after = sink.written_through().await?;
    let (entries, through) = spool.read(after, BATCH_EVENTS).await?;
    METRICS
        .spool_oldest_seconds
        .set(entries.first().map_or(0.0, age_seconds));
    let Some(through) = through else {
        // Written before, but not yet dropped: the spool must not stay full of what is counted.
        if spool.pending() > 0 {
            spool.forget(after).await?;
        }
        return Ok(0);
    };
    let events: Vec<_> = entries.into_iter().map(|entry| entry.event).collect();
    sink.write(&events, through).await?;
    counted(&events);
    spool.forget(through).await?;
    Ok(events.len().max(1))
}

fn age_seconds(entry: &Entry) -> f64 {
    unix_ms().saturating_sub(entry.event.accepted_ms) as f64 / 1_000.0
}
