//! The WebAssembly engines: one for each resource class, with everything that is decided once.

use super::admission::record::StageRecord;
use super::admission::signature::TrustedKeys;
use super::artifact::{Digest, Stage};
use super::class::{Class, ClassLimits, MEMORIES_MAX, MEMORY_MB_MAX};
use super::compile_cache::CompileCache;
use super::compiler::{COMPILE_TIME_MAX, CompileError, Compiler};
use super::meter::Meter;
use super::module::{Module, ModuleError, Origin};
use super::sandbox::Sandbox;
use super::shape::Shape;
use moka::sync::Cache;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// The clock of policy deadlines. Fine enough for a 20 ms deadline, and 1,000 wake-ups a second
/// of one thread cost less than 0.1 % of a core.
const EPOCH_TICK: Duration = Duration::from_millis(1);

/// What `describe` may use where fuel is the clock.
const DESCRIBE_FUEL_MAX: u64 = 1_000_000_000;

/// Trials remembered, some hundred bytes each.
const TRIALS_MAX: u64 = 1_000;

#[derive(Clone)]
pub struct Engine {
    standard: Arc<ClassEngine>,
    large: Arc<ClassEngine>,
    compiler: Arc<Compiler>,
    cache: Option<Arc<CompileCache>>,
    trusted_keys: Arc<TrustedKeys>,
    /// Of stages that passed, by everything that their trial depended on: one module serves many policies.
    pub(super) trials: Cache<Digest, StageRecord>,
}

/// Who says that a component is worth compiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// The registry: it was compiled before.
    Published,
    /// Nobody yet.
    Uploaded,
}

/// The engine of one class, and how many of its slots hold idle instances.
pub(super) struct ClassEngine {
    pub limits: &'static ClassLimits,
    pub inner: wasmtime::Engine,
    linker: Linker<Sandbox>,
    idle: AtomicUsize,
    /// Only where calls are measured, never where they serve.
    pub meter: Option<Meter>,
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
            compiler: Arc::new(Compiler::start()?),
            cache: None,
            trusted_keys: Arc::default(),
            trials: Cache::new(TRIALS_MAX),
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

    /// Keeps what it compiles in a data directory, and looks there before it compiles.
    ///
    /// # Errors
    /// When the cache cannot be made there.
    pub fn with_cache(mut self, data_dir: &Path) -> anyhow::Result<Self> {
        let engines = [&self.standard.inner, &self.large.inner];
        self.cache = Some(Arc::new(CompileCache::open(data_dir, engines)?));
        Ok(self)
    }

    /// Runs only what is signed with one of these keys, if there are any.
    pub fn with_trusted_keys(mut self, keys: TrustedKeys) -> Self {
        self.trusted_keys = Arc::new(keys);
        self
    }

    pub(super) fn trusted_keys(&self) -> &TrustedKeys {
        &self.trusted_keys
    }

    #[cfg(test)]
    pub(super) fn standard(&self) -> &wasmtime::Engine {
        &self.standard.inner
    }

    fn class(&self, class: Class) -> &Arc<ClassEngine> {
        match class {
            Class::Standard => &self.standard,
            Class::Large => &self.large,
        }
    }

    /// Compiles a published component, checks what it imports and exports, and reads its description.
    /// Takes tens of milliseconds for a small module: never call it on the serving path.
    ///
    /// # Errors
    /// Why the bytes are not a module.
    pub fn load(&self, bytes: &[u8]) -> Result<Module, ModuleError> {
        self.load_as(Trust::Published, bytes)
    }

    /// The same for a component that somebody sent: within bounds of size, complexity and time.
    ///
    /// # Errors
    /// Why the bytes are not a module that this host would compile.
    pub fn load_upload(&self, bytes: &[u8]) -> Result<Module, ModuleError> {
        self.load_as(Trust::Uploaded, bytes)
    }

    /// The same again, compiled so that each call counts what it uses; too slow to serve.
    ///
    /// # Errors
    /// When no such engine can be made, or the component cannot be compiled for it.
    pub fn load_metered(&self, bytes: &[u8]) -> Result<Module, ModuleError> {
        let shape = Shape::read(bytes).map_err(ModuleError::Invalid)?;
        let engine = ClassEngine::metered(shape.class())
            .map_err(|error| ModuleError::Invalid(format!("{error:#}")))?;
        let component = self
            .compiler
            .compile_upload(&engine.inner, bytes, COMPILE_TIME_MAX)?;
        Arc::new(engine).module(Digest::of(bytes), shape, &component, None)
    }

    fn load_as(&self, trust: Trust, bytes: &[u8]) -> Result<Module, ModuleError> {
        refuse_core_module(bytes)?;
        let shape = Shape::read(bytes).map_err(ModuleError::Invalid)?;
        if let Some(reason) = shape.too_complex() {
            return Err(ModuleError::TooComplex(reason));
        }
        let engine = self.class(shape.class());
        let digest = Digest::of(bytes);
        let cached = self.cache.as_ref();
        if let Some(component) = cached.and_then(|cache| cache.load(&engine.inner, digest)) {
            return engine.module(digest, shape, &component, None);
        }
        let started = Instant::now();
        let component = match trust {
            Trust::Published => self
                .compiler
                .compile(&engine.inner, bytes)
                .map_err(CompileError::Invalid)?,
            Trust::Uploaded => {
                self.compiler
                    .compile_upload(&engine.inner, bytes, COMPILE_TIME_MAX)?
            }
        };
        let took = started.elapsed();
        if let Some(cache) = cached {
            cache.keep(&engine.inner, digest, &component);
        }
        engine.module(digest, shape, &component, Some(took))
    }
}

impl ClassEngine {
    fn new(class: Class) -> anyhow::Result<Self> {
        let limits = class.limits();
        let mut config = Self::config(limits);
        config
            .allocation_strategy(Self::pool(limits))
            .epoch_interruption(true);
        Self::of(limits, &config, None)
    }

    /// Fuel is the only clock here: the same call uses the same fuel on every machine, and every
    /// byte that a bulk operation touches is charged for, so it bounds time as well.
    fn metered(class: Class) -> anyhow::Result<Self> {
        let limits = class.limits();
        let mut config = Self::config(limits);
        config.consume_fuel(true);
        Self::of(limits, &config, Some(Meter::new(DESCRIBE_FUEL_MAX)))
    }

    fn of(
        limits: &'static ClassLimits,
        config: &Config,
        meter: Option<Meter>,
    ) -> anyhow::Result<Self> {
        let inner = wasmtime::Engine::new(config).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let linker = Linker::new(&inner);
        Ok(Self {
            limits,
            inner,
            linker,
            idle: AtomicUsize::new(0),
            meter,
        })
    }

    /// Settled for all engines: what decides the answers of a guest.
    fn config(limits: &ClassLimits) -> Config {
        let mut config = Config::new();
        config
            .concurrency_support(false)
            .wasm_relaxed_simd(false) // the same bits on every processor
            .max_wasm_stack(limits.guest_stack_bytes);
        config
    }

    fn pool(limits: &ClassLimits) -> InstanceAllocationStrategy {
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
        InstanceAllocationStrategy::Pooling(pool)
    }

    fn module(
        self: &Arc<Self>,
        digest: Digest,
        shape: Shape,
        component: &Component,
        compiled_in: Option<Duration>,
    ) -> Result<Module, ModuleError> {
        let stage = self.check_world(component)?;
        let pre = self
            .linker
            .instantiate_pre(component)
            .map_err(|error| ModuleError::Invalid(root_cause(&error)))?;
        let origin = Origin {
            digest,
            shape,
            stage,
            compiled_in,
        };
        Module::link(self.clone(), origin, pre)
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
            .ok_or_else(|| other_abi(&exports).unwrap_or(ModuleError::WrongWorld(exports)))
    }
}

/// A stage of an ABI that this host does not speak.
fn other_abi(exports: &[String]) -> Option<ModuleError> {
    Stage::ALL.into_iter().find_map(|stage| {
        let (interface, offered) = stage.interface().split_once('@')?;
        let (_, found) = exports
            .iter()
            .filter_map(|export| export.split_once('@'))
            .find(|(export, _)| *export == interface)?;
        Some(ModuleError::AbiVersion {
            interface,
            found: found.to_owned(),
            offered,
        })
    })
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
