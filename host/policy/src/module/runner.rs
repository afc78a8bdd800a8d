//! Calls into one compiled module, on fresh or reused instances, each within its budget.

use super::world::World;
use crate::class_engine::{ClassEngine, root_cause};
use crate::sandbox::Sandbox;
use nova_model::artifact::InstanceMode;
use nova_model::failure::{FailureKind, PolicyFailure};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
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
}

struct Idle<I> {
    store: Store<Sandbox>,
    instance: I,
    calls: u32,
}

/// Runs calls on fresh or reused instances of one module.
pub(super) struct Runner<W: World> {
    engine: Arc<ClassEngine>,
    pre: W,
    idle: Mutex<Vec<Idle<W::Instance>>>,
    /// Set permanently once a reused instance gives another answer than a fresh one.
    reuse_refuted: AtomicBool,
    calls_until_recheck: AtomicU32,
}

impl<W: World> Drop for Runner<W> {
    fn drop(&mut self) {
        let idle = self.idle.get_mut().map_or(0, |idle| idle.len());
        self.engine.end_idle(idle);
    }
}

impl<W: World> Runner<W> {
    pub fn new(engine: Arc<ClassEngine>, pre: W) -> Self {
        Self {
            engine,
            pre,
            idle: Mutex::new(Vec::new()),
            reuse_refuted: AtomicBool::new(false),
            calls_until_recheck: AtomicU32::new(RECHECK_EVERY),
        }
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
        self.keep_idle(instance);
        Ok(answer)
    }

    fn instantiate(&self, budget: CallBudget) -> Result<Idle<W::Instance>, PolicyFailure> {
        let mut store = Store::new(
            &self.engine.inner,
            Sandbox::new(budget.memory_bytes, self.engine.limits),
        );
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
        !error.is::<Trap>() && !store.data().memory_denied()
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
        idle.store.data_mut().begin_call(budget.memory_bytes);
        let answer = call(&mut idle.store, &idle.instance);
        if let Some(meter) = &self.engine.meter {
            let fuel_left = idle.store.get_fuel().unwrap_or_default();
            meter.record(fuel_left, idle.store.data().memory_bytes());
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
        } else if store.data().memory_denied() {
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
            let taken = self.idle.lock().ok()?.pop()?;
            self.engine.end_idle(1);
            if taken.store.data().memory_bytes() <= memory_bytes {
                return Some(taken);
            }
        }
    }

    fn keep_idle(&self, instance: Idle<W::Instance>) {
        if let Ok(mut idle) = self.idle.lock()
            && instance.calls < CALLS_PER_INSTANCE_MAX
            && idle.len() < IDLE_PER_MODULE_MAX
            && self.engine.begin_idle()
        {
            idle.push(instance);
        }
    }
}
