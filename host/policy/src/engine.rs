//! The WebAssembly engines, one per resource class, and the settings that are fixed when they
//! start.

use super::admission::signature::TrustedKeys;
use super::class::{Class, ClassLimits, MEMORIES_MAX, MEMORY_MB_MAX};
use super::compile_cache::CompileCache;
use super::compiler::{COMPILE_TIME_MAX, CompileError, Compiler};
use super::meter::Meter;
use super::module::{Module, ModuleError, Origin};
use super::sandbox::Sandbox;
use super::shape::Shape;
use moka::sync::Cache;
use nova_model::artifact::{Digest, Stage};
use nova_model::measured::StageRecord;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Resolution of policy deadlines. It is fine enough for a 20 ms deadline, and 1,000 wake-ups per
/// second of one thread cost less than 0.1 % of a core.
const EPOCH_TICK: Duration = Duration::from_millis(1);

/// Fuel limit of one `describe` call on a metered engine, where fuel replaces the deadline.
const DESCRIBE_FUEL_MAX: u64 = 1_000_000_000;

/// Maximum number of remembered trials. Each takes a few hundred bytes.
const TRIALS_MAX: u64 = 1_000;

#[derive(Clone)]
pub struct Engine {
    standard: Arc<ClassEngine>,
    large: Arc<ClassEngine>,
    compiler: Arc<Compiler>,
    cache: Option<Arc<CompileCache>>,
    trusted_keys: Arc<TrustedKeys>,
    /// Records of the stages that passed their trial. The key covers everything that the trial
    /// depended on, so policies that share a module share its trial.
    pub(super) trials: Cache<Digest, StageRecord>,
}

/// Origin of a component, which decides how carefully it is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// It comes from the registry, so it was compiled before.
    Published,
    /// It was uploaded and has never been compiled.
    Uploaded,
}

/// The engine of one class, with the number of its slots that hold idle instances.
pub(super) struct ClassEngine {
    pub limits: &'static ClassLimits,
    pub inner: wasmtime::Engine,
    linker: Linker<Sandbox>,
    idle: AtomicUsize,
    /// Set only on engines that measure calls, never on those that serve.
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
    /// Fails if the address space for the pools cannot be reserved or a thread cannot be started.
    pub fn start() -> anyhow::Result<Self> {
        let engine = Self {
            standard: Arc::new(ClassEngine::new(Class::Standard)?),
            large: Arc::new(ClassEngine::new(Class::Large)?),
            compiler: Arc::new(Compiler::start()?),
            cache: None,
            trusted_keys: Arc::default(),
            trials: Cache::new(TRIALS_MAX),
        };
        // The ticker has its own thread instead of a timer of the async runtime, because a guest
        // that spins must not be able to stop the clock that interrupts it. The thread ends when
        // the last engine handle is dropped.
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

    /// Adds a cache of compiled code in `data_dir`, which is consulted before compiling.
    ///
    /// # Errors
    /// Fails if the cache cannot be created there.
    pub fn with_cache(mut self, data_dir: &Path) -> anyhow::Result<Self> {
        let engines = [&self.standard.inner, &self.large.inner];
        self.cache = Some(Arc::new(CompileCache::open(data_dir, engines)?));
        Ok(self)
    }

    /// Accepts only policies that are signed with one of these keys. If there are none, no
    /// signature is required.
    pub fn with_trusted_keys(mut self, keys: TrustedKeys) -> Self {
        self.trusted_keys = Arc::new(keys);
        self
    }

    pub fn trusted_keys(&self) -> &TrustedKeys {
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

    /// Compiles a published component, checks its imports and exports, and reads its description.
    /// This takes tens of milliseconds for a small module, so never call it on the serving path.
    ///
    /// # Errors
    /// Fails with the reason if the bytes are not a valid module.
    pub fn load(&self, bytes: &[u8]) -> Result<Module, ModuleError> {
        self.load_as(Trust::Published, bytes)
    }

    /// Does the same as [`Engine::load`] for an uploaded component, within bounds on its size,
    /// complexity and compile time.
    ///
    /// # Errors
    /// Fails with the reason if the bytes are not a module that this host accepts for
    /// compilation.
    pub fn load_upload(&self, bytes: &[u8]) -> Result<Module, ModuleError> {
        self.load_as(Trust::Uploaded, bytes)
    }

    /// Compiles the component so that each call counts the fuel and memory it uses. The result is
    /// too slow to serve.
    ///
    /// # Errors
    /// Fails if the metered engine cannot be created or the component cannot be compiled for it.
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

    /// Creates an engine that limits calls by fuel alone. The same call uses the same fuel on
    /// every machine. Every byte that a bulk operation touches costs fuel, so fuel bounds time as
    /// well.
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

    /// Returns the settings common to all engines. These settings affect the output of a guest.
    fn config(limits: &ClassLimits) -> Config {
        let mut config = Config::new();
        config
            .concurrency_support(false)
            .wasm_relaxed_simd(false) // gives the same bits on every processor
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
            // If the kernel can report which pages were touched, only those are cleared.
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

    /// Reserves a slot for one more idle instance. Returns false if the limit is reached. The
    /// reservation lasts until [`ClassEngine::end_idle`].
    pub fn begin_idle(&self) -> bool {
        let grow = |idle| (idle < self.limits.idle).then_some(idle + 1);
        self.idle
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow)
            .is_ok()
    }

    pub fn end_idle(&self, instances: usize) {
        self.idle.fetch_sub(instances, Ordering::Relaxed);
    }

    /// Checks that the component imports nothing and returns the stage whose interface it
    /// exports.
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

/// Returns an error if a stage's interface is exported in an ABI version that this host does not
/// support.
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

/// Checks the first eight bytes, which distinguish WebAssembly from other files and components
/// from core modules.
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
