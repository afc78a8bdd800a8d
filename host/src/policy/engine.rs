//! The WebAssembly engines: one for each resource class, with everything that is decided once.

use super::artifact::{Digest, Stage};
use super::class::{Class, ClassLimits, MEMORIES_MAX, MEMORY_MB_MAX};
use super::module::{Module, ModuleError};
use super::sandbox::Sandbox;
use super::shape::Shape;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// The clock of policy deadlines. Fine enough for a 20 ms deadline, and 1,000 wake-ups a second
/// of one thread cost less than 0.1 % of a core.
const EPOCH_TICK: Duration = Duration::from_millis(1);

#[derive(Clone)]
pub struct Engine {
    standard: Arc<ClassEngine>,
    large: Arc<ClassEngine>,
}

/// The engine of one class, and how many of its slots hold idle instances.
pub(super) struct ClassEngine {
    pub limits: &'static ClassLimits,
    pub inner: wasmtime::Engine,
    linker: Linker<Sandbox>,
    idle: AtomicUsize,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the engines and the thread that ticks their epochs.
    ///
    /// # Errors
    /// When the address space for the pools cannot be reserved, or no thread can be started.
    pub fn start() -> anyhow::Result<Self> {
        let engine = Self {
            standard: Arc::new(ClassEngine::new(Class::Standard)?),
            large: Arc::new(ClassEngine::new(Class::Large)?),
        };
        // A thread of its own, not a timer of the async runtime: a guest that spins must not be able to
        // stop the clock that is meant to stop it. The thread ends with the last engine handle.
        let engines = [engine.standard.inner.weak(), engine.large.inner.weak()];
        std::thread::Builder::new()
            .name("policy-epoch".into())
            .spawn(move || {
                loop {
                    let alive = engines.iter().filter_map(|engine| engine.upgrade());
                    if alive.map(|engine| engine.increment_epoch()).count() == 0 {
                        break;
                    }
                    std::thread::sleep(EPOCH_TICK);
                }
            })?;
        Ok(engine)
    }

    fn class(&self, class: Class) -> &Arc<ClassEngine> {
        match class {
            Class::Standard => &self.standard,
            Class::Large => &self.large,
        }
    }

    /// Compiles a component, checks what it imports and exports, and reads its description.
    /// Takes tens of milliseconds for a small module: never call it on the serving path.
    pub fn load(&self, bytes: &[u8]) -> Result<Module, ModuleError> {
        refuse_core_module(bytes)?;
        let shape = Shape::read(bytes).map_err(ModuleError::Invalid)?;
        let engine = self.class(shape.class());
        let component = Component::new(&engine.inner, bytes)
            .map_err(|error| ModuleError::Invalid(root_cause(&error)))?;
        let stage = engine.check_world(&component)?;
        let pre = engine
            .linker
            .instantiate_pre(&component)
            .map_err(|error| ModuleError::Invalid(root_cause(&error)))?;
        Module::link(engine.clone(), Digest::of(bytes), shape, stage, pre)
    }
}

impl ClassEngine {
    fn new(class: Class) -> anyhow::Result<Self> {
        let limits = class.limits();
        let inner = wasmtime::Engine::new(&Self::config(limits))
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let linker = Linker::new(&inner);
        Ok(Self {
            limits,
            inner,
            linker,
            idle: AtomicUsize::new(0),
        })
    }

    fn config(limits: &ClassLimits) -> Config {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(limits.slots)
            .total_core_instances(limits.slots * limits.core_instances)
            .total_memories(limits.slots * MEMORIES_MAX)
            .total_tables(limits.slots * limits.tables)
            .max_core_instances_per_component(limits.core_instances)
            .max_memories_per_component(MEMORIES_MAX)
            .max_tables_per_component(limits.tables)
            .max_component_instance_size(limits.instance_bytes)
            .table_elements(limits.table_elements)
            .max_memory_size((MEMORY_MB_MAX as usize) << 20)
            .linear_memory_keep_resident(limits.keep_resident_bytes)
            .table_keep_resident(64 << 10)
            // Where the kernel can say which pages were touched, only those are cleared.
            .pagemap_scan(Enabled::Auto)
            .max_unused_warm_slots(limits.warm_slots);
        let mut config = Config::new();
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
            .epoch_interruption(true)
            .concurrency_support(false)
            .wasm_relaxed_simd(false) // the same bits on every processor
            .max_wasm_stack(limits.guest_stack_bytes);
        config
    }

    /// Whether one more instance may be kept idle; it then counts until [`ClassEngine::end_idle`].
    pub fn begin_idle(&self) -> bool {
        let grow = |idle| (idle < self.limits.idle).then_some(idle + 1);
        self.idle
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow)
            .is_ok()
    }

    pub fn end_idle(&self, instances: usize) {
        self.idle.fetch_sub(instances, Ordering::Relaxed);
    }

    /// No imports, and the interface of exactly one stage.
    fn check_world(&self, component: &Component) -> Result<Stage, ModuleError> {
        let ty = component.component_type();
        let imports: Vec<String> = ty
            .imports(&self.inner)
            .map(|(name, _)| name.to_owned())
            .collect();
        if !imports.is_empty() {
            return Err(ModuleError::Imports(imports));
        }
        let exports: Vec<String> = ty
            .exports(&self.inner)
            .map(|(name, _)| name.to_owned())
            .collect();
        Stage::ALL
            .into_iter()
            .find(|stage| exports.iter().any(|export| export == stage.interface()))
            .ok_or(ModuleError::WrongWorld(exports))
    }
}

/// The first eight bytes tell WebAssembly from other files, and components from core modules.
fn refuse_core_module(bytes: &[u8]) -> Result<(), ModuleError> {
    match bytes {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Err(ModuleError::CoreModule),
        _ => Err(ModuleError::NotWasm),
    }
}

pub(super) fn root_cause(error: &wasmtime::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
