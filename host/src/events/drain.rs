//! From the spool to its sink: read a portion, write it, forget it. The sink is the aggregates themselves when
//! embedded, the broker in the real stack. A crash between any two steps repeats a step, and the sink, or whoever
//! reads behind it, leaves out what is there already.

use super::spool::{Entry, Spool};
use crate::clock::unix_ms;
use crate::failpoint;
use crate::metrics::METRICS;
use crate::stores::{AcceptedEvent, Action, EventSink};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// For a sink that writes to a store: small enough to hold its writer for a few milliseconds only.
pub const STORE_BATCH_EVENTS: u32 = 1_000;
/// For a broker: one round trip and one commit of the spool are shared by so many.
pub const BROKER_BATCH_EVENTS: u32 = 5_000;
/// The safety net behind the spool's notification.
const IDLE_WAIT: Duration = Duration::from_millis(500);
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Told whose likes, comments and shares are counted now.
pub type Counted = Arc<dyn Fn(BTreeSet<u64>) + Send + Sync>;

/// The viewers whose feeds these events change: the ones who liked, commented or shared.
pub fn overtaking<'a>(events: impl IntoIterator<Item = &'a AcceptedEvent>) -> BTreeSet<u64> {
    let changes_feed = |event: &&AcceptedEvent| {
        matches!(event.action, Action::Like | Action::Comment | Action::Share)
    };
    let events = events.into_iter().filter(changes_feed);
    events.map(|event| event.user_id).collect()
}

pub struct Drain {
    pub spool: Spool,
    pub sink: Arc<dyn EventSink>,
    /// Told of what the sink wrote; for a sink that is only a stage on the way, nobody.
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

/// How far this process got. Lost after an error, when the sink is asked again.
#[derive(Default)]
struct Progress {
    /// The last entry written.
    through: Option<i64>,
    /// What was read while that was written.
    next: Option<Portion>,
}

struct Portion {
    entries: Vec<Entry>,
    through: Option<i64>,
}

impl Drain {
    /// Drains the spool until told to stop; then until it is empty or `stop` has been set for `flush`.
    pub async fn run(self, stop: CancellationToken, flush: Duration) {
        let deadline = async {
            stop.cancelled().await;
            tokio::time::sleep(flush).await;
        };
        tokio::select! {
            () = self.drain(&stop) => {}
            () = deadline => tracing::warn!(events = self.spool.pending(), "stopping with events in the spool; the next start counts them"),
        }
    }

    async fn drain(&self, stop: &CancellationToken) {
        let mut progress = Progress::default();
        loop {
            // Asked before the spool is read: what was accepted last may have come in after an empty look at it.
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
                        "accepted events cannot be counted yet; they stay in the spool"
                    );
                    progress = Progress::default();
                    tokio::time::sleep(RETRY_WAIT).await;
                }
            }
        }
    }

    /// Writes one portion; meanwhile the one before it is forgotten and the one after it is read. `false` when there was none.
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
            counted(overtaking(&events));
        }
        if !forgot {
            // The disk does not take the deletion now. What comes next is written all the same, and forgotten with it.
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

    /// Drops what the sink has: the spool must not stay full of it. `false` when that could not be done; the sink has
    /// it all the same, and must not be given it again and again.
    async fn forget(&self, through: i64) -> bool {
        if through == 0 || self.spool.pending() == 0 {
            return true;
        }
        let forgot = self.spool.forget(through).await;
        if let Err(error) = &forgot {
            tracing::error!(%error, through, "events that were passed on cannot be removed from the spool yet");
        }
        forgot.is_ok()
    }
}

fn age_seconds(entry: &Entry) -> f64 {
    unix_ms().saturating_sub(entry.event.accepted_ms) as f64 / 1_000.0
}
