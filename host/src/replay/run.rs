//! The replay of recorded requests: one reader, and one worker per core that decodes and ranks. The
//! comparison with what was served is in `report`.

use super::fuel::{self, Fuel, METERED_MAX};
use super::policies::{Contender, Library, Server};
use super::record::Record;
use super::report::{Report, Tally, difference};
use nova_model::artifact::InstanceMode;
use nova_model::failure::PolicyFailure;
use nova_policy::compare::compare;
use nova_policy::module::CallBudget;
use nova_policy::native::guarded;
use nova_policy::ranking::{RankInput, Ranking, rank};
use nova_stores::records::{RecordStore, Selection, Stored};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};

/// Number of records read and passed to a worker at once.
const BATCH: u32 = 64;
/// Maximum number of batches that wait for a worker.
const BATCHES_AHEAD: usize = 8;
/// Time limit of one ranking. A replay may take longer than a request, so rankings beyond the
/// policy's own deadline are not cut off but counted.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Callback with the number of records just completed.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

struct Work {
    library: Library,
    contenders: Vec<Contender>,
    instances: Instances,
    progress: Progress,
}

/// The instances on which the check against what was served runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instances {
    /// Instances of the mode that served, so that the time is comparable with a contender's.
    AsServed,
    /// Instances reused from record to record, which is cheaper. If the answer differs, the
    /// record is run again on instances as served, and that answer counts.
    Kept,
}

/// Checks each selected record against what was served, and compares it with every contender's
/// ranking.
///
/// # Errors
/// Fails if the records cannot be read.
pub async fn run(
    store: &mut RecordStore,
    selection: Selection,
    library: Library,
    contenders: Vec<Contender>,
    threads: usize,
    progress: Progress,
) -> anyhow::Result<Report> {
    let started = Instant::now();
    let instances = match contenders.is_empty() {
        true => Instances::Kept,
        false => Instances::AsServed,
    };
    let work = Arc::new(Work {
        library,
        contenders,
        instances,
        progress,
    });
    let (batches, queue) = mpsc::channel(BATCHES_AHEAD);
    let queue = Arc::new(Mutex::new(queue));
    let worker = || {
        let (work, queue) = (work.clone(), queue.clone());
        tokio::task::spawn_blocking(move || work.run(&queue))
    };
    let workers: Vec<_> = (0..threads).map(|_| worker()).collect();
    let mut after = store.start_of(selection).await?;
    loop {
        let batch = store.read_after(after, selection, BATCH).await?;
        let Some(last) = batch.last() else {
            break;
        };
        after = last.id;
        if batches.send(batch).await.is_err() {
            break;
        }
    }
    drop(batches);
    let mut tally = Tally::new(work.contenders.len());
    for worker in workers {
        tally.merge(worker.await?);
    }
    let mut report = finish(tally, &work.contenders, threads, started.elapsed());
    if !work.contenders.is_empty() {
        report.add_fuel(meter(store, selection, work).await?);
    }
    Ok(report)
}

/// Measures fuel in a separate pass, because metered modules are too slow to time.
async fn meter(
    store: &mut RecordStore,
    selection: Selection,
    work: Arc<Work>,
) -> anyhow::Result<Fuel> {
    let from = store.start_of(selection).await?;
    let stored = store.read_after(from, selection, METERED_MAX).await?;
    let records = stored.iter().filter_map(|s| Record::decode(&s.bytes).ok());
    let records: Vec<Record> = records.collect();
    let measured = move || fuel::measure(&work.library, &work.contenders, &records);
    Ok(tokio::task::spawn_blocking(measured).await?)
}

fn finish(tally: Tally, contenders: &[Contender], threads: usize, took: Duration) -> Report {
    let policies = contenders
        .iter()
        .zip(tally.contenders)
        .map(|(contender, tally)| {
            tally.report(contender.label.clone(), contender.policy.effective_digest)
        });
    Report {
        policies: policies.collect(),
        check: tally.check.report(),
        threads,
        elapsed_s: took.as_secs_f64(),
        requests_per_second: tally.records.read as f64 / took.as_secs_f64().max(f64::EPSILON),
        records: tally.records,
    }
}

impl Work {
    fn run(&self, queue: &Mutex<mpsc::Receiver<Vec<Stored>>>) -> Tally {
        let mut tally = Tally::new(self.contenders.len());
        loop {
            let batch = queue.blocking_lock().blocking_recv();
            let Some(batch) = batch else {
                return tally;
            };
            let records = batch.len() as u64;
            for stored in batch {
                self.replay(&stored, &mut tally);
            }
            (self.progress)(records);
        }
    }

    fn replay(&self, stored: &Stored, tally: &mut Tally) {
        tally.records.read += 1;
        let record = match Record::decode(&stored.bytes) {
            Ok(record) => record,
            Err(error) => return tally.skip(error.to_string()),
        };
        let request = record.request();
        let input = record.input(&request);
        match self.library.served(&record.answer.policy) {
            None => tally.check.unavailable(&record.answer.policy.label),
            Some(server) => {
                let (difference, took) = self.check(&server, &record, input);
                tally.check.checked(stored.id, &record, difference, took);
            }
        }
        for (contender, tally) in self.contenders.iter().zip(&mut tally.contenders) {
            let policy = &contender.policy;
            let budget = policy.budget_without_deadline(TIME_LIMIT);
            let (answer, took) = timed(|| rank(&policy.running(budget), input));
            let deadline = Duration::from_millis(policy.spec.limits.deadline_ms.into());
            tally.ran(took, deadline);
            match answer {
                Err(failure) => tally.failed(&failure),
                Ok(ranking) => {
                    let (authors, page) = (&record.candidates.author_ids, record.limit as usize);
                    let found = compare(authors, &record.answer.rows, &ranking.rows, page);
                    tally.compared(stored.id, &record, &ranking, &found);
                }
            }
        }
    }

    /// Returns the difference between the new answer and what was served, and the time taken.
    fn check(
        &self,
        server: &Server,
        record: &Record,
        input: RankInput<'_>,
    ) -> (Option<String>, Duration) {
        let on = |instances| {
            let (answer, took) = timed(|| rank_again(server, input, instances));
            (difference(record, &answer), took)
        };
        match self.instances {
            Instances::AsServed => on(None),
            Instances::Kept => match on(Some(InstanceMode::Reuse)) {
                (None, took) => (None, took),
                (Some(_), _) => on(None),
            },
        }
    }
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let answer = run();
    (answer, started.elapsed())
}

/// Ranks again, on instances of the policy's own mode unless `instances` gives another.
fn rank_again(
    server: &Server,
    input: RankInput<'_>,
    instances: Option<InstanceMode>,
) -> Result<Ranking, PolicyFailure> {
    match server {
        Server::Policy(policy) => {
            let budget = policy.budget_without_deadline(TIME_LIMIT);
            let mode = instances.unwrap_or(budget.mode);
            rank(&policy.running(CallBudget { mode, ..budget }), input)
        }
        Server::Native(native) => guarded(AssertUnwindSafe(|| rank(*native, input))),
    }
}
