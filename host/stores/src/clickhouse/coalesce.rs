//! Coalescing of lookups: those of one kind that arrive while queries of that kind run are
//! answered together by the next query.
//!
//! If a hundred viewers miss the cache at once, they need the same lookups for different
//! viewers and mostly the same posts. Much of the cost of such a query is fixed: parsing,
//! planning and starting its pipeline. No lookup lingers: one that arrives while a query may
//! start is sent at once, alone.

use super::{ClickHouseStore, STORE_NAME};
use crate::guard;
use crate::guard::Failure;
use crate::ports::{StoreError, StoreResult};
use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tokio::time::Instant as Deadline;

/// Maximum number of concurrent queries of one kind. It is two, so that one viewer with a thousand
/// followees does not delay all others.
const QUERIES_AT_ONCE: usize = 2;

/// One caller's part of a query.
pub(super) trait Lookup: Sized + Send + Sync + 'static {
    type Answer: Send + 'static;
    /// The query's name in metrics and errors.
    const NAME: &'static str;

    /// Reports if the query for `batch` can also answer this lookup.
    fn joins(&self, batch: &[Self]) -> bool;

    /// Answers all lookups with one query; returns one answer for each.
    fn answer_all(
        store: &ClickHouseStore,
        batch: &[Self],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, Failure>> + Send;
}

/// Handle to the queue of one kind of lookup; clones share the queue.
pub(super) struct Coalescer<Q: Lookup>(Arc<Mutex<Queue<Q>>>);

struct Queue<Q: Lookup> {
    waiting: VecDeque<Caller<Q>>,
    running: usize,
}

struct Caller<Q: Lookup> {
    lookup: Q,
    /// Time at which the caller gives up; `None` if it waits until the store's own time limit.
    until: Option<Deadline>,
    reply: oneshot::Sender<StoreResult<Q::Answer>>,
}

impl<Q: Lookup> Clone for Coalescer<Q> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Q: Lookup> Default for Coalescer<Q> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Queue {
            waiting: VecDeque::new(),
            running: 0,
        })))
    }
}

impl<Q: Lookup> Coalescer<Q> {
    /// Runs a lookup, alone or in one query with others.
    ///
    /// # Errors
    /// Fails if the query that this lookup became part of fails.
    pub async fn run(&self, store: &ClickHouseStore, lookup: Q) -> StoreResult<Q::Answer> {
        let (reply, answer) = oneshot::channel();
        let caller = Caller {
            lookup,
            until: guard::caller_deadline(),
            reply,
        };
        if let Some(runner) = self.enqueue(caller) {
            // The query runs in its own task, so that answers for other callers do not end with
            // a caller who hangs up.
            tokio::spawn(runner.run(store.clone()));
        }
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(failed::<Q>(true, anyhow::anyhow!("the query was dropped"))),
        }
    }

    /// Queues a lookup. Returns a runner to start, unless enough queries are already running.
    fn enqueue(&self, caller: Caller<Q>) -> Option<Runner<Q>> {
        let mut queue = self.queue();
        queue.waiting.push_back(caller);
        if queue.running == QUERIES_AT_ONCE {
            return None;
        }
        queue.running += 1;
        Some(Runner {
            of: self.clone(),
            counted: true,
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Q>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs queries until no lookup waits. It counts as running until it is dropped, even if it
/// panics.
struct Runner<Q: Lookup> {
    of: Coalescer<Q>,
    counted: bool,
}

impl<Q: Lookup> Drop for Runner<Q> {
    fn drop(&mut self) {
        if self.counted {
            self.of.queue().running -= 1;
        }
    }
}

impl<Q: Lookup> Runner<Q> {
    async fn run(mut self, store: ClickHouseStore) {
        while let Some((lookups, callers)) = self.next_batch() {
            let asked = store.guard.run(Q::NAME, Q::answer_all(&store, &lookups));
            let answered = guard::within_until(latest(&callers), asked).await;
            reply(callers, answered);
        }
    }

    /// Takes as many lookups from the front of the queue as one query can answer, and skips
    /// callers that have given up. Returns `None` if the queue is empty. The runner then stops
    /// counting as running while it still holds the lock, because the next caller that queues a
    /// lookup relies on the count.
    fn next_batch(&mut self) -> Option<(Vec<Q>, Vec<Reply<Q>>)> {
        let mut queue = self.of.queue();
        let (mut lookups, mut replies) = (Vec::new(), Vec::new());
        while let Some(caller) = queue.waiting.pop_front() {
            if caller.reply.is_closed() {
                continue;
            }
            if !lookups.is_empty() && !caller.lookup.joins(&lookups) {
                queue.waiting.push_front(caller);
                break;
            }
            lookups.push(caller.lookup);
            replies.push(Reply {
                until: caller.until,
                to: caller.reply,
            });
        }
        if lookups.is_empty() {
            queue.running -= 1;
            drop(queue);
            self.counted = false;
            return None;
        }
        Some((lookups, replies))
    }
}

struct Reply<Q: Lookup> {
    until: Option<Deadline>,
    to: oneshot::Sender<StoreResult<Q::Answer>>,
}

/// The latest deadline of all callers; the query is useful until then.
fn latest<Q: Lookup>(callers: &[Reply<Q>]) -> Option<Deadline> {
    let untils: Option<Vec<Deadline>> = callers.iter().map(|caller| caller.until).collect();
    untils?.into_iter().max()
}

fn reply<Q: Lookup>(callers: Vec<Reply<Q>>, answered: Option<StoreResult<Vec<Q::Answer>>>) {
    let error = match answered {
        Some(Ok(answers)) => {
            for (caller, answer) in callers.into_iter().zip(answers) {
                // Sending fails only if the caller has hung up, and then the answer is not needed.
                let _ = caller.to.send(Ok(answer));
            }
            return;
        }
        Some(Err(error)) => error,
        None => failed::<Q>(true, anyhow::anyhow!("no answer in time")),
    };
    for caller in callers {
        let cause = anyhow::anyhow!("{:#}", error.source);
        let _ = caller.to.send(Err(failed::<Q>(error.retryable, cause)));
    }
}

fn failed<Q: Lookup>(retryable: bool, source: anyhow::Error) -> StoreError {
    StoreError {
        store: STORE_NAME,
        query: Q::NAME,
        retryable,
        source,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    static QUERIES: AtomicUsize = AtomicUsize::new(0);
    static ANSWERING: Semaphore = Semaphore::const_new(0);

    /// Doubles a number once the test allows it; fails for whole batches that contain a 13.
    struct Double(u64);

    impl Lookup for Double {
        type Answer = u64;
        const NAME: &'static str = "double";

        fn joins(&self, batch: &[Self]) -> bool {
            batch.len() < 4
        }

        async fn answer_all(_store: &ClickHouseStore, batch: &[Self]) -> Result<Vec<u64>, Failure> {
            QUERIES.fetch_add(1, Ordering::SeqCst);
            let permit = ANSWERING.acquire().await;
            permit.map_err(Failure::permanent)?.forget();
            if batch.iter().any(|lookup| lookup.0 == 13) {
                return Err(Failure::permanent(anyhow::anyhow!("unlucky")));
            }
            Ok(batch.iter().map(|lookup| lookup.0 * 2).collect())
        }
    }

    #[tokio::test]
    async fn questions_that_arrive_while_queries_run_share_one_query_and_its_failure() {
        let store = ClickHouseStore::connect("http://127.0.0.1:1").unwrap();
        let together = Coalescer::<Double>::default();
        let ask = |number| {
            let (store, together) = (store.clone(), together.clone());
            tokio::spawn(async move { together.run(&store, Double(number)).await })
        };
        // Two queries run alone. Of the other callers, one hangs up, four form a batch, and the
        // 13 fails another batch.
        let mut asked = Vec::new();
        for number in 1..=2 {
            asked.push(ask(number));
            while QUERIES.load(Ordering::SeqCst) < number as usize {
                tokio::task::yield_now().await;
            }
        }
        let queued = async |callers: usize| {
            while together.queue().waiting.len() < callers {
                tokio::task::yield_now().await;
            }
        };
        let hung_up = ask(100);
        queued(1).await;
        hung_up.abort();
        let _ = hung_up.await;
        asked.extend((3..=6).map(ask));
        queued(5).await;
        asked.extend((13..=14).map(ask));
        queued(7).await;
        ANSWERING.add_permits(4);
        let mut answers = Vec::new();
        for one in asked {
            answers.push(one.await.unwrap().map_err(|error| error.retryable));
        }
        let ok = [1, 2, 3, 4, 5, 6].map(|number| Ok(number * 2));
        assert_eq!(answers[..6], ok);
        assert_eq!(answers[6..], [Err(false), Err(false)]);
        assert_eq!(QUERIES.load(Ordering::SeqCst), 4);
        assert_eq!(together.queue().running, 0);
    }
}
