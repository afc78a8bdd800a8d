//! The record that a ranking was served. Written behind the request: a viewer never waits for it.

use crate::feed::snapshot::Snapshot;
use crate::metrics::METRICS;
use crate::stores::{Exposure, ExposureStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Records that may wait for the store, of some 20 KB each. Beyond that they are dropped, and counted.
const QUEUE_MAX: usize = 2_048;
const BATCH_MAX: usize = 500;
/// Between attempts at a batch that the store did not take.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a record waits for company.
const LINGER: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub struct Exposures {
    queue: mpsc::Sender<Exposure>,
}

pub fn of(snapshot: &Snapshot, request_id: &str) -> Exposure {
    let assignment = snapshot.assignment.as_ref();
    Exposure {
        ranking_id: snapshot.ranking_id,
        request_id: request_id.to_owned(),
        user_id: snapshot.viewer,
        served_at_ms: snapshot.created_at_ms,
        served_by: snapshot.served_by.as_str().to_owned(),
        policy: snapshot.policy.label(),
        effective_digest: snapshot.policy.effective_digest.to_string(),
        experiment: assignment.map(|assignment| assignment.experiment.to_string()),
        variation: assignment.map(|assignment| assignment.variation.to_string()),
        posts: snapshot
            .posts
            .iter()
            .map(|post| (post.post_id, post.sources.reason().into()))
            .collect(),
        degraded: snapshot.degraded.clone(),
    }
}

impl Exposures {
    /// Starts the writer; it ends when `stop` is set and the queue is empty, or the store takes no more.
    pub fn start(
        store: Arc<dyn ExposureStore>,
        stop: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, records) = mpsc::channel(QUEUE_MAX);
        (Self { queue }, tokio::spawn(write(store, records, stop)))
    }

    pub fn record(&self, exposure: Exposure) {
        if let (Some(experiment), Some(variation)) = (&exposure.experiment, &exposure.variation) {
            METRICS
                .exposures_total
                .with_label_values(&[experiment, variation])
                .inc();
        }
        if self.queue.try_send(exposure).is_err() {
            METRICS
                .dead_letters_total
                .with_label_values(&["served", "queue_full"])
                .inc();
        }
    }
}

async fn write(
    store: Arc<dyn ExposureStore>,
    mut records: mpsc::Receiver<Exposure>,
    stop: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        tokio::select! {
            biased;
            count = records.recv_many(&mut batch, BATCH_MAX) => {
                if count == 0 {
                    return;
                }
            }
            () = stop.cancelled() => return,
        }
        if !record(store.as_ref(), &batch, &stop).await {
            let lost = batch.len() + records.len();
            tracing::error!(
                exposures = lost,
                "stopping with exposures that were not recorded"
            );
            METRICS
                .dead_letters_total
                .with_label_values(&["served", "store"])
                .inc_by(lost as u64);
            return;
        }
        // A full batch means that more are waiting.
        let linger = batch.len() < BATCH_MAX && !stop.is_cancelled();
        batch.clear();
        if linger {
            tokio::time::sleep(LINGER).await;
        }
    }
}

/// Repeats until the store has the batch: one that was lost would bias the counts of an experiment, and one that is
/// recorded again replaces itself. Meanwhile the queue fills. `false` when the host stops and the store still refuses.
async fn record(store: &dyn ExposureStore, batch: &[Exposure], stop: &CancellationToken) -> bool {
    let mut wait = RETRY_FIRST;
    while let Err(error) = store.record(batch).await {
        if stop.is_cancelled() {
            return false;
        }
        tracing::error!(%error, exposures = batch.len(), "exposures cannot be recorded yet");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // One more attempt.
            () = stop.cancelled() => {}
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
    true
}
