//! The recorder of rankings, which works in the background: it records a sampled fraction, every
//! ranking whose policy failed, and all rankings of chosen viewers. If its queue is full, a
//! record is dropped and counted, so no viewer waits for a record.

use super::record::{Record, Why};
use crate::config::Records;
use crate::feed::decision::Decision;
use arc_swap::ArcSwap;
use nova_control::offline::HostRegistry;
use nova_model::artifact::Digest;
use nova_model::artifact::Stage;
use nova_model::snapshot::ServedBy;
use nova_policy::loaded::LoadedPolicy;
use nova_stores::records::{Bounds, Encoded, RecordStore};
use nova_support::clock::unix_ms;
use nova_support::metrics::METRICS;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Maximum number of rankings that wait to be written. They share their candidates with the
/// cache, so each holds about 10 KiB of its own.
const QUEUE_MAX: usize = 512;
const BATCH_MAX: usize = 64;
/// Time for which records gather in a batch. Committing many costs little more than committing
/// one.
const LINGER: Duration = Duration::from_millis(200);
/// Interval between checks of the records' age while nothing is recorded.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// Maximum number of failures recorded per second. A policy that always fails would displace
/// every other record within minutes, and its first failures are enough to diagnose it.
const FAILURES_PER_SECOND_MAX: u32 = 20;

#[derive(Debug)]
pub struct Recorder {
    queue: mpsc::Sender<(Why, Arc<Decision>)>,
    settings: Arc<ArcSwap<Records>>,
    failures: PerSecond,
}

/// Limit on events per second.
#[derive(Debug)]
struct PerSecond {
    max: u32,
    began: Instant,
    /// The current second and the number of events in it.
    counted: Mutex<(u64, u32)>,
}

impl PerSecond {
    fn new(max: u32) -> Self {
        Self {
            max,
            began: Instant::now(),
            counted: Mutex::default(),
        }
    }

    fn admit(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.began).as_secs();
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.0 != second {
            *counted = (second, 0);
        }
        counted.1 += 1;
        counted.1 <= self.max
    }
}

impl Recorder {
    /// Starts the writer, which ends when `stop` is set and the queue is empty.
    pub fn start(
        data_dir: PathBuf,
        settings: Records,
        registry: Arc<dyn HostRegistry>,
        stop: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, decisions) = mpsc::channel(QUEUE_MAX);
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        let recorder = Self {
            queue,
            settings: settings.clone(),
            failures: PerSecond::new(FAILURES_PER_SECOND_MAX),
        };
        let writing = tokio::spawn(async move {
            match RecordStore::open(&data_dir).await {
                Ok(store) => {
                    let writer = Writer {
                        store,
                        registry,
                        settings,
                        known: HashSet::new(),
                        bytes: 0,
                    };
                    writer.run(decisions, stop).await;
                }
                // A feed must not depend on its records, so the host runs without them.
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "could not open the record store; recording nothing. Remove the directory `records` of the data directory and restart"
                    );
                    refuse(decisions, stop).await;
                }
            }
        });
        (recorder, writing)
    }

    pub fn configure(&self, settings: &Records) {
        if **self.settings.load() != *settings {
            self.settings.store(Arc::new(settings.clone()));
        }
    }

    /// Queues the ranking if it should be recorded.
    pub fn offer(&self, decision: &Arc<Decision>) {
        let Some(why) = self.wanted(decision) else {
            return;
        };
        let chosen = || {
            let viewer = decision.task.request.user_id;
            self.settings.load().viewers.contains(&viewer)
        };
        if why == Why::Failure && !self.failures.admit(Instant::now()) && !chosen() {
            count("failure_limit", 1);
        } else if self.queue.try_send((why, decision.clone())).is_err() {
            count("queue_full", 1);
        }
    }

    fn wanted(&self, decision: &Decision) -> Option<Why> {
        let settings = self.settings.load();
        if decision.ranked.served_by != ServedBy::Policy {
            Some(Why::Failure)
        } else if settings.viewers.contains(&decision.task.request.user_id) {
            Some(Why::Viewer)
        } else {
            let ratio = settings.sample_ratio;
            (ratio > 0.0 && rand::random::<f64>() < ratio).then_some(Why::Sampled)
        }
    }
}

fn count(outcome: &str, records: u64) {
    METRICS
        .records_total
        .with_label_values(&[outcome])
        .inc_by(records);
}

async fn refuse(mut decisions: mpsc::Receiver<(Why, Arc<Decision>)>, stop: CancellationToken) {
    while let Some(Some(_)) = stop.run_until_cancelled(decisions.recv()).await {
        count("store", 1);
    }
}

struct Writer {
    store: RecordStore,
    registry: Arc<dyn HostRegistry>,
    settings: Arc<ArcSwap<Records>>,
    /// Effective digests of policies that are in the store.
    known: HashSet<Digest>,
    /// Size of the store: the size at the last pruning plus everything written since.
    bytes: u64,
}

impl Writer {
    async fn run(
        mut self,
        mut decisions: mpsc::Receiver<(Why, Arc<Decision>)>,
        stop: CancellationToken,
    ) {
        self.prune().await;
        let mut pruned = tokio::time::Instant::now();
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            tokio::select! {
                biased;
                received = decisions.recv_many(&mut batch, BATCH_MAX) => if received == 0 {
                    return;
                },
                () = tokio::time::sleep_until(pruned + PRUNE_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            let full = batch.len() == BATCH_MAX;
            if !batch.is_empty() {
                self.write(std::mem::take(&mut batch)).await;
            }
            if self.bytes > self.settings.load().bytes_max || pruned.elapsed() >= PRUNE_INTERVAL {
                self.prune().await;
                pruned = tokio::time::Instant::now();
            }
            // After a full batch, more records are waiting, so the writer continues at once.
            if !full && !stop.is_cancelled() {
                tokio::time::sleep(LINGER).await;
            }
        }
    }

    async fn write(&mut self, batch: Vec<(Why, Arc<Decision>)>) {
        for (why, decision) in &batch {
            // The last good policy is needed for a replay only if it had to serve.
            let last_good = decision.last_good.iter().filter(|_| *why == Why::Failure);
            for policy in decision.routed.iter().chain(last_good) {
                self.keep_policy(policy).await;
            }
        }
        let records = batch.len() as u64;
        let encode = move || {
            let of = |(why, decision): &(Why, Arc<Decision>)| {
                Record::from_decision(*why, decision).to_encoded()
            };
            batch.iter().map(of).collect::<Vec<Encoded>>()
        };
        let written = match tokio::task::spawn_blocking(encode).await {
            Ok(encoded) => {
                self.bytes += encoded.iter().map(Encoded::size_bytes).sum::<u64>();
                self.store.append(&encoded).await
            }
            Err(panic) => Err(panic.into()),
        };
        match written {
            Ok(()) => count("written", records),
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    records,
                    "could not write recorded rankings; dropping them"
                );
                count("store", records);
            }
        }
        METRICS.records_bytes.set(self.bytes as i64);
    }

    /// Stores a policy with its records. A record without its policy is still useful, because the
    /// registry may have the policy when it is replayed.
    async fn keep_policy(&mut self, policy: &LoadedPolicy) {
        if self.known.contains(&policy.effective_digest) {
            return;
        }
        match self.copy_policy(policy).await {
            Ok(()) => drop(self.known.insert(policy.effective_digest)),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                policy = %policy.spec.policy,
                "could not store a policy with its records; trying again with its next record"
            ),
        }
    }

    async fn copy_policy(&mut self, policy: &LoadedPolicy) -> anyhow::Result<()> {
        if self.store.has_policy(policy.effective_digest).await? {
            return Ok(());
        }
        let mut modules = Vec::new();
        for stage in Stage::ALL {
            let digest = policy.modules.get(stage).digest;
            let bytes = self.registry.module(digest).await?;
            let bytes =
                bytes.ok_or_else(|| anyhow::anyhow!("the registry has no module {digest}"))?;
            self.bytes += bytes.len() as u64;
            modules.push((digest, bytes));
        }
        self.store.put_policy(&policy.spec, &modules).await
    }

    async fn prune(&mut self) {
        let bounds = {
            let settings = self.settings.load();
            Bounds {
                bytes_max: settings.bytes_max,
                age_max: Duration::from_secs(settings.age_max_h * 3_600),
            }
        };
        let pruned = async {
            let removed = self.store.prune(unix_ms(), bounds).await?;
            if removed > 0 {
                // Pruning the last record of a policy removes the policy as well.
                self.known.clear();
            }
            self.bytes = self.store.bytes().await?;
            anyhow::Ok(())
        };
        if let Err(error) = pruned.await {
            tracing::warn!(
                error = format!("{error:#}"),
                "could not remove old records; trying again later"
            );
        }
        METRICS.records_bytes.set(self.bytes as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_on_failures_applies_to_each_second() {
        let limit = PerSecond::new(2);
        let at = |ms| limit.began + Duration::from_millis(ms);
        let admitted = [0, 10, 20, 999, 1_000, 1_001, 1_002].map(|ms| limit.admit(at(ms)));
        assert_eq!(admitted, [true, true, false, false, true, true, false]);
    }
}
