//! The WebAssembly engine: one for the process, with everything that is decided once.

use super::artifact::{Digest, Stage};
use super::module::{Module, ModuleError};
use super::sandbox::{CORE_INSTANCES_MAX, TABLE_ELEMENTS_MAX};
use std::sync::Arc;
use std::time::Duration;
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// The clock of policy deadlines. Fine enough for a 20 ms deadline, and 1,000 wake-ups a second
/// of one thread cost less than 0.1 % of a core.
const EPOCH_TICK: Duration = Duration::from_millis(1);

/// Instances that can exist at once: running calls (one per worker) and idle ones kept for reuse.
pub const INSTANCE_SLOTS: u32 = 256;

/// Address space, not memory: what a slot can grow to at most. A policy's own limit is lower.
pub const MEMORY_MB_MAX: u32 = 256;

/// Pages that stay mapped in a returned slot: page faults were the gap between fresh and reused instances.
const KEEP_RESIDENT_BYTES: usize = 1 << 20;

/// Stack of a guest. The default of 512 KiB is ample for flat loops; stated because it is a bound.
const GUEST_STACK_BYTES: usize = 512 << 10;

#[derive(Clone)]
pub struct Engine {
    inner: wasmtime::Engine,
    linker: Arc<Linker<super::sandbox::Sandbox>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the engine and the thread that ticks its epochs.
    ///
    /// # Errors
    /// When the address space for the pool cannot be reserved, or no thread can be started.
    pub fn start() -> anyhow::Result<Self> {
        let inner =
            wasmtime::Engine::new(&Self::config()).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let linker = Linker::new(&inner);
        // A thread of its own, not a timer of the async runtime: a guest that spins must not be able to
        // stop the clock that is meant to stop it. The thread ends with the last engine handle.
        let weak = inner.weak();
        std::thread::Builder::new()
            .name("policy-epoch".into())
            .spawn(move || {
                while let Some(engine) = weak.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    std::thread::sleep(EPOCH_TICK);
                }
            })?;
        Ok(Self {
            inner,
            linker: Arc::new(linker),
        })
    }

    fn config() -> Config {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(INSTANCE_SLOTS)
            .total_core_instances(INSTANCE_SLOTS * CORE_INSTANCES_MAX)
            .total_memories(INSTANCE_SLOTS)
            .total_tables(INSTANCE_SLOTS * CORE_INSTANCES_MAX)
            .table_elements(TABLE_ELEMENTS_MAX)
            .max_memory_size((MEMORY_MB_MAX as usize) << 20)
            .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
            .table_keep_resident(64 << 10)
            // Where the kernel can say which pages were touched, only those are cleared.
            .pagemap_scan(Enabled::Auto)
            .max_unused_warm_slots(64);
        let mut config = Config::new();
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
            .epoch_interruption(true)
            .concurrency_support(false)
            .wasm_relaxed_simd(false) // the same bits on every processor
            .max_wasm_stack(GUEST_STACK_BYTES);
        config
    }

    pub(super) fn inner(&self) -> &wasmtime::Engine {
        &self.inner
    }

    /// Compiles a component, checks what it imports and exports, and reads its description.
    /// Takes tens of milliseconds for a small module: never call it on the serving path.
    pub fn load(&self, bytes: &[u8]) -> Result<Module, ModuleError> {
        refuse_core_module(bytes)?;
        let component = Component::new(&self.inner, bytes)
            .map_err(|error| ModuleError::Invalid(root_cause(&error)))?;
        let stage = self.check_world(&component)?;
        let pre = self
            .linker
            .instantiate_pre(&component)
            .map_err(|error| ModuleError::Invalid(root_cause(&error)))?;
        Module::link(self.clone(), Digest::of(bytes), stage, pre)
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
