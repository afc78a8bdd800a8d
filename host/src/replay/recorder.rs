//! Records rankings behind the request: a sampled fraction, every one whose policy failed, and all of chosen viewers.
//! What the queue does not take is dropped and counted; no viewer waits for a record.

use super::record::{Record, Why};
use super::store::{Bounds, Encoded, RecordStore};
use crate::clock::unix_ms;
use crate::config::Records;
use crate::feed::decision::Decision;
use crate::feed::snapshot::ServedBy;
use crate::metrics::METRICS;
use crate::policy::Digest;
use crate::policy::artifact::Stage;
use crate::policy::loaded::LoadedPolicy;
use crate::policy::registry::Registry;
use arc_swap::ArcSwap;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Rankings that may wait to be written; their candidates are shared with the cache, so each holds some 10 KiB of its own.
const QUEUE_MAX: usize = 512;
const BATCH_MAX: usize = 64;
/// Records gather for this long: commits of many cost little more than commits of one.
const LINGER: Duration = Duration::from_millis(200);
/// How often age is looked at while nothing is recorded.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// Of failures: a policy that fails always would push out every other record within minutes, and its first failures tell all.
const FAILURES_PER_SECOND_MAX: u32 = 20;

#[derive(Debug)]
pub struct Recorder {
    queue: mpsc::Sender<(Why, Arc<Decision>)>,
    settings: Arc<ArcSwap<Records>>,
    failures: PerSecond,
}

/// So many of something in each second.
#[derive(Debug)]
struct PerSecond {
    max: u32,
    began: Instant,
    /// The second, and how many were in it.
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
    /// Starts the writer; it ends when `stop` is set and the queue is empty.
    pub fn start(
        data_dir: PathBuf,
        settings: Records,
        registry: Arc<dyn Registry>,
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
                // A feed must not depend on its evidence.
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "nothing is recorded; remove the directory `records` of the data directory and start again"
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

    /// Takes a ranking if it is one to record.
    pub fn offer(&self, decision: &Arc<Decision>) {
        let Some(why) = self.wanted(decision) else {
            return;
        };
        let chosen = || {
            let viewer = decision.job.request.user_id;
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
        } else if settings.viewers.contains(&decision.job.request.user_id) {
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
    registry: Arc<dyn Registry>,
    settings: Arc<ArcSwap<Records>>,
    /// Effective digests of policies that the store has.
    known: HashSet<Digest>,
    /// What the store holds, as of the last look and everything written since.
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
            // A full batch means that more are waiting.
            if !full && !stop.is_cancelled() {
                tokio::time::sleep(LINGER).await;
            }
        }
    }

    async fn write(&mut self, batch: Vec<(Why, Arc<Decision>)>) {
        for (why, decision) in &batch {
            // What the last good policy is matters only where it had to answer.
            let last_good = decision.last_good.iter().filter(|_| *why == Why::Failure);
            for policy in decision.routed.iter().chain(last_good) {
                self.keep_policy(policy).await;
            }
        }
        let records = batch.len() as u64;
        let encode = move || {
            let of =
                |(why, decision): &(Why, Arc<Decision>)| Encoded::of(&Record::of(*why, decision));
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
                    "rankings cannot be recorded"
                );
                count("store", records);
            }
        }
        METRICS.records_bytes.set(self.bytes as i64);
    }

    /// A record without its policy is still one: the registry may have it at the time of the replay.
    async fn keep_policy(&mut self, policy: &LoadedPolicy) {
        if self.known.contains(&policy.effective_digest) {
            return;
        }
        match self.copy_policy(policy).await {
            Ok(()) => drop(self.known.insert(policy.effective_digest)),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                policy = %policy.spec.policy,
                "a policy cannot be kept with its records"
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
                // With the last record of a policy the policy went as well.
                self.known.clear();
            }
            self.bytes = self.store.bytes().await?;
            anyhow::Ok(())
        };
        if let Err(error) = pruned.await {
            tracing::warn!(
                error = format!("{error:#}"),
                "old records cannot be removed"
            );
        }
        METRICS.records_bytes.set(self.bytes as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_its_share_of_failures_and_the_next_one_has_it_again() {
        let limit = PerSecond::new(2);
        let at = |ms| limit.began + Duration::from_millis(ms);
        let admitted = [0, 10, 20, 999, 1_000, 1_001, 1_002].map(|ms| limit.admit(at(ms)));
        assert_eq!(admitted, [true, true, false, false, true, true, false]);
    }
}
