//! Calls into one compiled module, on fresh or reused instances, each within its budget.

use super::world::World;
use crate::class_engine::{ClassEngine, root_cause};
use crate::memory::{Claim, IdleSet, Reservation};
use crate::sandbox::{Refusal, Sandbox};
use nova_model::artifact::InstanceMode;
use nova_model::failure::{FailureKind, PolicyFailure};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

/// Maximum number of idle instances per module. More would rarely be used, because the number of
/// workers limits the calls that run at once.
const IDLE_PER_MODULE_MAX: usize = 16;
/// Maximum number of calls per instance, so that memory leaked by a guest is bounded.
const CALLS_PER_INSTANCE_MAX: u32 = 10_000;
/// One in this many calls on reused instances is repeated on a fresh instance to compare the
/// answers.
const RECHECK_EVERY: u32 = 1_024;

/// Limits of one call.
#[derive(Debug, Clone, Copy)]
pub struct CallBudget {
    pub deadline: Instant,
    pub memory_bytes: usize,
    pub mode: InstanceMode,
    pub claim: Claim,
}

struct Idle<I> {
    store: Store<Sandbox>,
    instance: I,
    calls: u32,
}

/// The idle instances of one module, the one that waits for longest first.
struct IdleInstances<I> {
    engine: Arc<ClassEngine>,
    instances: Mutex<VecDeque<(Instant, Idle<I>)>>,
}

impl<I> IdleInstances<I> {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, Idle<I>)>> {
        self.instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the instance that was used last.
    fn take(&self) -> Option<Idle<I>> {
        let (_, taken) = self.lock().pop_back()?;
        self.engine.end_idle(taken.store.data().reserved_bytes());
        Some(taken)
    }

    fn keep(&self, instance: Idle<I>) {
        // The limits are checked without the lock, because making room for this instance may
        // drop others of this module.
        if instance.calls < CALLS_PER_INSTANCE_MAX
            && self.lock().len() < IDLE_PER_MODULE_MAX
            && self
                .engine
                .begin_idle(instance.store.data().reserved_bytes())
        {
            self.lock().push_back((Instant::now(), instance));
        }
    }
}

impl<I: Send> IdleSet for IdleInstances<I> {
    fn oldest(&self) -> Option<Instant> {
        self.lock().front().map(|(since, _)| *since)
    }

    fn drop_oldest(&self, since: Instant) -> bool {
        let mut instances = self.lock();
        if instances.front().is_none_or(|(at, _)| *at > since) {
            return false;
        }
        let dropped = instances.pop_front();
        // Unmapping memory takes a while.
        drop(instances);
        if let Some((_, dropped)) = dropped {
            self.engine.end_idle(dropped.store.data().reserved_bytes());
        }
        true
    }
}

impl<I> Drop for IdleInstances<I> {
    fn drop(&mut self) {
        let instances = self
            .instances
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for (_, idle) in instances.drain(..) {
            self.engine.end_idle(idle.store.data().reserved_bytes());
        }
    }
}

/// Runs calls on fresh or reused instances of one module.
pub(super) struct Runner<W: World> {
    engine: Arc<ClassEngine>,
    pre: W,
    idle: Arc<IdleInstances<W::Instance>>,
    /// Bytes that all instances of this module have reserved.
    reserved_bytes: Arc<AtomicU64>,
    /// Set permanently once a reused instance gives another answer than a fresh one.
    reuse_refuted: AtomicBool,
    calls_until_recheck: AtomicU32,
}

impl<W: World> Runner<W> {
    pub fn new(engine: Arc<ClassEngine>, pre: W) -> Self {
        let idle = Arc::new(IdleInstances {
            engine: engine.clone(),
            instances: Mutex::default(),
        });
        let set: Weak<IdleInstances<W::Instance>> = Arc::downgrade(&idle);
        engine.common.memory.register(set);
        Self {
            engine,
            pre,
            idle,
            reserved_bytes: Arc::default(),
            reuse_refuted: AtomicBool::new(false),
            calls_until_recheck: AtomicU32::new(RECHECK_EVERY),
        }
    }

    /// Returns the bytes that all instances of this module have reserved.
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes.load(Ordering::Relaxed)
    }

    pub fn call<R: PartialEq>(
        &self,
        budget: CallBudget,
        call: impl Fn(&mut Store<Sandbox>, &W::Instance) -> wasmtime::Result<R>,
    ) -> Result<R, PolicyFailure> {
        if budget.mode == InstanceMode::Fresh || self.reuse_refuted.load(Ordering::Relaxed) {
            return self
                .call_once(self.instantiate(budget)?, budget, &call)
                .map(|(answer, _)| answer);
        }
        let instance = match self.take_idle(budget.memory_bytes) {
            Some(instance) => instance,
            None => self.instantiate(budget)?,
        };
        let (answer, instance) = self.call_once(instance, budget, &call)?;
        if self.calls_until_recheck.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.calls_until_recheck
                .store(RECHECK_EVERY, Ordering::Relaxed);
            let fresh = self
                .instantiate(budget)
                .and_then(|fresh| self.call_once(fresh, budget, &call));
            // A failed second run, perhaps for lack of time, proves nothing, and the first run
            // has given an answer.
            if let Ok((fresh, _)) = fresh
                && fresh != answer
            {
                self.reuse_refuted.store(true, Ordering::Relaxed);
                tracing::error!(stage = %W::STAGE, "a reused instance gave another answer than a fresh one; running this module on fresh instances only from now on");
                return Ok(fresh);
            }
        }
        self.idle.keep(instance);
        Ok(answer)
    }

    fn instantiate(&self, budget: CallBudget) -> Result<Idle<W::Instance>, PolicyFailure> {
        let memory = self.engine.common.memory.clone();
        let reservation = Reservation::new(memory, self.reserved_bytes.clone());
        let (cap, class) = (budget.memory_bytes, self.engine.class);
        let sandbox =
            Sandbox::new(cap, budget.claim, reservation, class).ok_or_else(Self::out_of_memory)?;
        let mut store = Store::new(&self.engine.inner, sandbox);
        store.limiter(|sandbox| sandbox);
        if let Some(meter) = &self.engine.meter {
            store
                .set_fuel(meter.fuel_max())
                .map_err(|error| self.classify(&store, &error))?;
        }
        self.arm(&mut store, budget.deadline)?;
        match self.pre.instantiate(&mut store) {
            Ok(instance) => Ok(Idle {
                store,
                instance,
                calls: 0,
            }),
            Err(error) if self.is_hosts(&store, &error) => Err(PolicyFailure::new(
                W::STAGE,
                FailureKind::Pool,
                root_cause(&error),
            )),
            Err(error) => Err(self.classify(&store, &error)),
        }
    }

    /// Reports if instantiation failed because the host lacked a resource, such as memory of the
    /// machine. A fault of the guest here is a trap or a refused memory growth. A lack of
    /// resources on the host must not count against the policy's error budget.
    fn is_hosts(&self, store: &Store<Sandbox>, error: &wasmtime::Error) -> bool {
        !error.is::<Trap>() && store.data().refusal() != Some(Refusal::Policy)
    }

    fn out_of_memory() -> PolicyFailure {
        PolicyFailure::new(
            W::STAGE,
            FailureKind::Pool,
            "the memory of all instances (policy.memory_mb) is spent",
        )
    }

    /// Makes one call. If the guest traps, its instance is dropped with the store, because its
    /// state cannot be trusted any more.
    fn call_once<R>(
        &self,
        mut idle: Idle<W::Instance>,
        budget: CallBudget,
        call: impl Fn(&mut Store<Sandbox>, &W::Instance) -> wasmtime::Result<R>,
    ) -> Result<(R, Idle<W::Instance>), PolicyFailure> {
        self.arm(&mut idle.store, budget.deadline)?;
        idle.store
            .data_mut()
            .begin_call(budget.memory_bytes, budget.claim);
        let answer = call(&mut idle.store, &idle.instance);
        if let Some(meter) = &self.engine.meter {
            let fuel_left = idle.store.get_fuel().unwrap_or_default();
            meter.record(fuel_left, idle.store.data().memory_bytes());
        }
        // A guest may survive a refused allocation and answer otherwise than with memory. Its
        // answer would depend on the load of the host.
        if idle.store.data().refusal() == Some(Refusal::Host) {
            return Err(Self::out_of_memory());
        }
        match answer {
            Ok(answer) => {
                idle.calls += 1;
                Ok((answer, idle))
            }
            Err(error) => Err(self.classify(&idle.store, &error)),
        }
    }

    /// Sets the deadline of the next call, in epoch ticks from now.
    fn arm(&self, store: &mut Store<Sandbox>, deadline: Instant) -> Result<(), PolicyFailure> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(PolicyFailure::new(
                W::STAGE,
                FailureKind::Deadline,
                "no time was left for this stage",
            ));
        }
        // The current tick has partly passed, so n ticks last between n − 1 and n milliseconds.
        store.set_epoch_deadline(left.as_micros().div_ceil(1_000) as u64);
        Ok(())
    }

    fn classify(&self, store: &Store<Sandbox>, error: &wasmtime::Error) -> PolicyFailure {
        let kind = if error.is::<PoolConcurrencyLimitError>() {
            FailureKind::Pool
        } else if store.data().refusal() == Some(Refusal::Policy) {
            FailureKind::Memory
        } else if matches!(
            error.downcast_ref::<Trap>(),
            Some(Trap::Interrupt | Trap::OutOfFuel)
        ) {
            FailureKind::Deadline
        } else {
            FailureKind::Trap
        };
        PolicyFailure::new(W::STAGE, kind, root_cause(error))
    }

    /// Takes an idle instance. All policies with this module share its instances. If another
    /// policy let an instance grow beyond `memory_bytes`, the instance is dropped.
    fn take_idle(&self, memory_bytes: usize) -> Option<Idle<W::Instance>> {
        loop {
            let taken = self.idle.take()?;
            if taken.store.data().memory_bytes() <= memory_bytes {
                return Some(taken);
            }
        }
    }
}
