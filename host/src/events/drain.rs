//! The loop that moves events from the spool to its sink: read a portion, write it, delete it
//! from the spool. The sink is the aggregates themselves in embedded mode and the broker in the
//! real stack. A crash between any two steps repeats a step. The sink, or the consumer behind
//! the broker, drops the events that it already has.

use nova_model::event::{AcceptedEvent, Action};
use nova_stores::ports::EventSink;
use nova_stores::spool::{Entry, Spool};
use nova_support::clock::unix_ms;
use nova_support::failpoint;
use nova_support::metrics::METRICS;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Batch size for a sink that writes to a store: small enough to block the store's writer for
/// only a few milliseconds.
pub const STORE_BATCH_EVENTS: u32 = 1_000;
/// Batch size for a broker: this many events share one round trip and one commit of the spool.
pub const BROKER_BATCH_EVENTS: u32 = 5_000;
/// Interval of reads while the spool is idle, in case its notification is missed.
const IDLE_WAIT: Duration = Duration::from_millis(500);
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Callback that receives the viewers whose likes, comments and shares have just been counted.
pub type Counted = Arc<dyn Fn(BTreeSet<u64>) + Send + Sync>;

/// Returns the viewers whose feeds these events change: those who liked, commented or shared.
pub fn invalidating<'a>(events: impl IntoIterator<Item = &'a AcceptedEvent>) -> BTreeSet<u64> {
    let changes_feed = |event: &&AcceptedEvent| {
        matches!(event.action, Action::Like | Action::Comment | Action::Share)
    };
    let events = events.into_iter().filter(changes_feed);
    events.map(|event| event.user_id).collect()
}

pub struct Drain {
    pub spool: Spool,
    pub sink: Arc<dyn EventSink>,
    /// Called with the viewers of the events that the sink wrote. `None` if the sink does not
    /// count events itself but only passes them on.
    pub counted: Option<Counted>,
    pub batch_events: u32,
}

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drain")
            .field("batch_events", &self.batch_events)
            .finish_non_exhaustive()
    }
}

/// Progress of this process. It is reset after an error, and the sink is then asked again.
#[derive(Default)]
struct Progress {
    /// The last entry written.
    through: Option<i64>,
    /// The portion that was read while the previous one was being written.
    next: Option<Portion>,
}

struct Portion {
    entries: Vec<Entry>,
    through: Option<i64>,
}

impl Drain {
    /// Drains the spool until `stop` is set. It then goes on until the spool is empty or
    /// `flush` has passed.
    pub async fn run(self, stop: CancellationToken, flush: Duration) {
        let deadline = async {
            stop.cancelled().await;
            tokio::time::sleep(flush).await;
        };
        tokio::select! {
            () = self.drain(&stop) => {}
            () = deadline => tracing::warn!(events = self.spool.pending(), "stopping before the spool is empty; the next start drains the rest"),
        }
    }

    async fn drain(&self, stop: &CancellationToken) {
        let mut progress = Progress::default();
        loop {
            // Reads `stop` before the spool: an event accepted just before the stop may arrive
            // after a read that found nothing.
            let stopping = stop.is_cancelled();
            match self.advance(&mut progress).await {
                Ok(true) => {}
                Ok(false) if stopping => return,
                Ok(false) => {
                    tokio::select! {
                        () = self.spool.written() => {}
                        () = tokio::time::sleep(IDLE_WAIT) => {}
                        () = stop.cancelled() => {}
                    }
                }
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "could not drain the spool to its sink; accepted events stay in the spool and are tried again"
                    );
                    progress = Progress::default();
                    tokio::time::sleep(RETRY_WAIT).await;
                }
            }
        }
    }

    /// Writes one portion. Meanwhile it deletes the previous portion from the spool and reads
    /// the next one. Returns `false` if there was nothing to write.
    async fn advance(&self, progress: &mut Progress) -> anyhow::Result<bool> {
        let written = match progress.through {
            Some(through) => through,
            None => self.sink.written_through().await?,
        };
        let portion = match progress.next.take() {
            Some(portion) => portion,
            None => self.read(written).await?,
        };
        let oldest_seconds = portion.entries.first().map_or(0.0, age_seconds);
        METRICS.spool_oldest_seconds.set(oldest_seconds);
        let Some(through) = portion.through else {
            progress.through = Some(written);
            self.forget(written).await;
            return Ok(false);
        };
        let events: Vec<_> = portion
            .entries
            .into_iter()
            .map(|entry| entry.event)
            .collect();
        let (wrote, next, forgot) = tokio::join!(
            self.sink.write(&events, through),
            self.read(through),
            self.forget(written)
        );
        wrote?;
        failpoint::hit("after_broker_ack");
        if let Some(counted) = &self.counted {
            counted(invalidating(&events));
        }
        if !forgot {
            // The disk rejects the deletion at the moment. The next portions are written all
            // the same, and a later deletion covers both.
            tokio::time::sleep(RETRY_WAIT).await;
        }
        progress.through = Some(through);
        progress.next = Some(next?).filter(|portion| portion.through.is_some());
        Ok(true)
    }

    async fn read(&self, after: i64) -> anyhow::Result<Portion> {
        let (entries, through) = self.spool.read(after, self.batch_events).await?;
        Ok(Portion { entries, through })
    }

    /// Deletes the entries that the sink has, so that they do not fill the spool. Returns
    /// `false` if the deletion failed. The sink keeps these events, and the drain must not
    /// write them to it again and again.
    async fn forget(&self, through: i64) -> bool {
        if through == 0 || self.spool.pending() == 0 {
            return true;
        }
        let forgot = self.spool.forget(through).await;
        if let Err(error) = &forgot {
            tracing::error!(%error, through, "could not delete events from the spool that the sink already has; trying again");
        }
        forgot.is_ok()
    }
}

fn age_seconds(entry: &Entry) -> f64 {
    unix_ms().saturating_sub(entry.event.accepted_ms) as f64 / 1_000.0
}
