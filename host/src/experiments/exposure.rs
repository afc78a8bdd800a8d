//! Exposures: the records of served rankings. They are written in the background, so a viewer's
//! request never waits for them.

use nova_model::exposure::Exposure;
use nova_model::snapshot::Snapshot;
use nova_stores::ports::ExposureStore;
use nova_support::metrics::METRICS;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Largest number of records that wait for the store, about 20 KB each. More are dropped and
/// counted.
const QUEUE_MAX: usize = 2_048;
const BATCH_MAX: usize = 500;
/// Shortest and longest pause between attempts to write a batch.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Time that a record waits for others to join its batch.
const LINGER: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub struct Exposures {
    queue: mpsc::Sender<Exposure>,
}

pub fn from_snapshot(snapshot: &Snapshot, request_id: &str) -> Exposure {
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
    /// Starts the writer. After `stop` is cancelled, it ends once the queue is empty or the
    /// store refuses a batch.
    pub fn start(
        store: Arc<dyn ExposureStore>,
        stop: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, records) = mpsc::channel(QUEUE_MAX);
        (Self { queue }, tokio::spawn(write(store, records, stop)))
    }

    pub fn record(&self, exposure: Exposure) {
        if let (Some(experiment), Some(variation)) = (&exposure.experiment, &exposure.variation) {
            METRICS.observe_exposure(experiment, variation);
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
                "the store did not take the last exposures before the stop; they are lost"
            );
            METRICS
                .dead_letters_total
                .with_label_values(&["served", "store"])
                .inc_by(lost as u64);
            return;
        }
        // If the batch is full, more records are already waiting, so the writer does not linger.
        let linger = batch.len() < BATCH_MAX && !stop.is_cancelled();
        batch.clear();
        if linger {
            tokio::time::sleep(LINGER).await;
        }
    }
}

/// Retries until the store has the batch. A lost batch would bias the counts of an experiment,
/// and a record that is written twice replaces itself. The queue fills meanwhile. Returns
/// `false` if the host is stopping and the store still refuses.
async fn record(store: &dyn ExposureStore, batch: &[Exposure], stop: &CancellationToken) -> bool {
    let mut wait = RETRY_FIRST;
    while let Err(error) = store.record(batch).await {
        if stop.is_cancelled() {
            return false;
        }
        tracing::error!(%error, exposures = batch.len(), "could not record exposures; trying again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // The loop makes one more attempt.
            () = stop.cancelled() => {}
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
    true
}
