//! Reading of the registry's state, the same in every engine: whole, or only what changed since
//! the state that was read last. The engines have only the SQL.

use async_trait::async_trait;
use nova_model::artifact::{Digest, PolicyRef};
use nova_model::audit_head::AuditHead;
use nova_model::experiments::cohort::Rule;
use nova_model::quarantine::{Lift, Quarantine, Withdrawal};
use nova_model::registry::{Experiment, PublishedPolicy, RegistryState, put_stage};
use nova_model::touched::Touched;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most changes that are read one by one. After more, the whole registry is read.
const CHANGES_MAX: i64 = 500;
/// Interval at which a change reads the whole registry, for the case that a row was changed by
/// other means than a change.
const WHOLE_INTERVAL: Duration = Duration::from_secs(600);

/// Rows to read: all, or those with these keys.
pub(crate) type Only<'a, K> = Option<&'a BTreeSet<K>>;

/// An open transaction of one engine in which every read sees the same revision.
#[async_trait]
pub(crate) trait Reader: Send {
    type Error: Send;

    async fn head(&mut self) -> Result<AuditHead, Self::Error>;

    async fn entry_hash(&mut self, id: i64) -> Result<Option<Digest>, Self::Error>;

    /// Returns action and subject of the entries after `id`, at most `limit`.
    async fn changes_after(
        &mut self,
        id: i64,
        limit: i64,
    ) -> Result<Vec<(String, String)>, Self::Error>;

    async fn policies(
        &mut self,
        only: Only<'_, PolicyRef>,
    ) -> Result<Vec<PublishedPolicy>, Self::Error>;

    async fn activations(&mut self) -> Result<Vec<PolicyRef>, Self::Error>;

    /// Returns policy, stage and percentage.
    async fn stages(&mut self) -> Result<Vec<(String, String, Option<f64>)>, Self::Error>;

    async fn quarantined(&mut self) -> Result<BTreeMap<Digest, Quarantine>, Self::Error>;

    async fn lifts(&mut self) -> Result<BTreeMap<Digest, Lift>, Self::Error>;

    async fn withdrawals(
        &mut self,
    ) -> Result<BTreeMap<Digest, BTreeMap<String, Withdrawal>>, Self::Error>;

    async fn experiments(
        &mut self,
        only: Only<'_, String>,
    ) -> Result<BTreeMap<String, Experiment>, Self::Error>;

    async fn cohorts(
        &mut self,
        only: Only<'_, String>,
    ) -> Result<BTreeMap<String, Rule>, Self::Error>;

    async fn flags(&mut self) -> Result<BTreeMap<String, bool>, Self::Error>;

    /// Returns the error of a row that cannot be read.
    fn unreadable(reason: String) -> Self::Error;
}

/// The state that was read last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<Mutex<Option<KnownState>>>);

#[derive(Debug, Clone)]
struct KnownState {
    state: Arc<RegistryState>,
    whole_at: Instant,
}

impl Known {
    /// Reads the registry: what changed since the last read, or the whole of it if there was none,
    /// or in doubt.
    pub(crate) async fn load<R: Reader + ?Sized>(
        &self,
        reader: &mut R,
    ) -> Result<RegistryState, R::Error> {
        let known = self.locked().clone();
        let known = known.filter(|known| known.whole_at.elapsed() < WHOLE_INTERVAL);
        let newer = match &known {
            Some(known) => since(reader, &known.state).await?,
            None => None,
        };
        let (state, whole_at) = match (newer, known) {
            (Some(state), Some(known)) => (state, known.whole_at),
            _ => (whole(reader).await?, Instant::now()),
        };
        *self.locked() = Some(KnownState {
            state: Arc::new(state.clone()),
            whole_at,
        });
        Ok(state)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Option<KnownState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn whole<R: Reader + ?Sized>(reader: &mut R) -> Result<RegistryState, R::Error> {
    let AuditHead { revision, hash } = reader.head().await?;
    let mut state = RegistryState {
        revision,
        head: hash,
        policies: reader.policies(None).await?,
        activations: reader.activations().await?,
        experiments: reader.experiments(None).await?,
        cohorts: reader.cohorts(None).await?,
        flags: reader.flags().await?,
        quarantined: reader.quarantined().await?,
        lifts: reader.lifts().await?,
        withdrawals: reader.withdrawals().await?,
        ..RegistryState::default()
    };
    read_stages(reader, &mut state).await?;
    Ok(state)
}

/// Returns the state after the changes since `known`. Returns `None` if the log does not continue
/// that state, because the registry was restored from a backup, or if it cannot tell what changed.
async fn since<R: Reader + ?Sized>(
    reader: &mut R,
    known: &RegistryState,
) -> Result<Option<RegistryState>, R::Error> {
    let head = reader.head().await?;
    if head == known.audit_head() {
        return Ok(Some(known.clone()));
    }
    let changes = head.revision - known.revision;
    if !(1..=CHANGES_MAX).contains(&changes)
        || known.head.is_none()
        || reader.entry_hash(known.revision).await? != known.head
    {
        return Ok(None);
    }
    let mut touched = Touched::default();
    let mut count = 0;
    for (action, subject) in reader.changes_after(known.revision, changes).await? {
        count += 1;
        if !touched.add(&action, &subject) {
            return Ok(None);
        }
    }
    if count < changes {
        return Ok(None);
    }
    let mut state = RegistryState {
        revision: head.revision,
        head: head.hash,
        ..known.clone()
    };
    read_touched(reader, &touched, &mut state).await?;
    Ok(Some(state))
}

async fn read_touched<R: Reader + ?Sized>(
    reader: &mut R,
    touched: &Touched,
    state: &mut RegistryState,
) -> Result<(), R::Error> {
    if !touched.policies.is_empty() {
        let found = reader.policies(Some(&touched.policies)).await?;
        state.replace_policies(&touched.policies, found);
    }
    if !touched.experiments.is_empty() {
        let found = reader.experiments(Some(&touched.experiments)).await?;
        replace(&mut state.experiments, &touched.experiments, found);
    }
    if !touched.cohorts.is_empty() {
        let found = reader.cohorts(Some(&touched.cohorts)).await?;
        replace(&mut state.cohorts, &touched.cohorts, found);
    }
    if touched.activations {
        state.activations = reader.activations().await?;
    }
    if touched.quarantines {
        state.quarantined = reader.quarantined().await?;
        state.lifts = reader.lifts().await?;
        state.withdrawals = reader.withdrawals().await?;
    }
    if touched.flags {
        state.flags = reader.flags().await?;
    }
    if touched.stages {
        read_stages(reader, state).await?;
    }
    Ok(())
}

async fn read_stages<R: Reader + ?Sized>(
    reader: &mut R,
    state: &mut RegistryState,
) -> Result<(), R::Error> {
    let rows = reader.stages().await?;
    (state.canary, state.shadows, state.retired) = Default::default();
    for (policy, stage, percent) in rows {
        put_stage(state, &policy, &stage, percent).map_err(R::unreadable)?;
    }
    Ok(())
}

/// Replaces the rows with these keys by those that were found. The others were removed.
fn replace<T>(rows: &mut BTreeMap<String, T>, keys: &BTreeSet<String>, found: BTreeMap<String, T>) {
    rows.retain(|key, _| !keys.contains(key));
    rows.extend(found);
}
