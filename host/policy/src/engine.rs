//! The WebAssembly engines, one per resource class, and the epoch tick that interrupts policies at
//! their deadline.

use super::builtin;
use super::class::Class;
use super::class_engine::{ClassEngine, Common};
use super::compile_cache::CompileCache;
use super::compiler::{COMPILE_TIME_MAX, CompileError, Compiler};
use super::memory::Memory;
use super::module::{Module, ModuleError, Origin, check_surface};
use super::sealed::Seal;
use super::settings::{Allocation, EngineSettings};
use super::shape::Shape;
use super::signature::TrustedKeys;
use super::worker::{Compiled, Worker};
use moka::sync::Cache;
use nova_model::artifact::Digest;
use nova_model::measured::StageRecord;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::component::Component;

/// Resolution of policy deadlines. It is fine enough for a 20 ms deadline, and 1,000 wake-ups per
/// second of one thread cost less than 0.1 % of a core.
const EPOCH_TICK: Duration = Duration::from_millis(1);

/// Maximum number of remembered trials. Each takes a few hundred bytes.
const TRIALS_MAX: u64 = 1_000;

#[derive(Clone)]
pub struct Engine {
    standard: Arc<ClassEngine>,
    large: Arc<ClassEngine>,
    compiler: Arc<Compiler>,
    cache: Option<Arc<CompileCache>>,
    trusted_keys: Arc<TrustedKeys>,
    worker: Option<Arc<Worker>>,
    /// Components that were compiled before any of their code ran.
    ahead: HashMap<Digest, (Component, Duration)>,
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

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the engines with the settings of commands.
    ///
    /// # Errors
    /// Fails as [`Engine::start_with`] does.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(EngineSettings::for_commands())
    }

    /// Starts the engines and the thread that ticks their epochs.
    ///
    /// # Errors
    /// Fails if the engines cannot be created or a thread cannot be started.
    pub fn start_with(settings: EngineSettings) -> anyhow::Result<Self> {
        Self::start_common(Common {
            settings,
            allocation: settings.allocation(),
            has_pool: true,
            memory: Arc::new(Memory::new(settings.memory_bytes)),
        })
    }

    /// Starts the engines of a process that checks one upload. It compiles for a host with this
    /// allocation and allocates its own instances one by one.
    ///
    /// # Errors
    /// Fails as [`Engine::start_with`] does.
    pub fn start_for_admission(allocation: Allocation) -> anyhow::Result<Self> {
        let settings = EngineSettings::for_commands();
        Self::start_common(Common {
            settings,
            allocation,
            has_pool: false,
            memory: Arc::new(Memory::new(settings.memory_bytes)),
        })
    }

    fn start_common(common: Common) -> anyhow::Result<Self> {
        let [standard, large] = class_engines(common)?;
        let engine = Self {
            standard: Arc::new(standard),
            large: Arc::new(large),
            compiler: Arc::new(Compiler::start()?),
            cache: None,
            trusted_keys: Arc::default(),
            worker: None,
            ahead: HashMap::new(),
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

    /// Compiles and tries uploads in child processes. This process then compiles only what was
    /// admitted before and what the program bundles.
    pub fn with_worker(mut self, worker: Worker) -> Self {
        self.worker = Some(Arc::new(worker));
        self
    }

    pub fn worker(&self) -> Option<&Worker> {
        self.worker.as_deref()
    }

    /// Compiles a component for [`Engine::load_upload`] and returns its code. Returns `None` if
    /// it is refused, which `load_upload` then explains.
    pub fn compile_ahead(&mut self, bytes: &[u8]) -> Option<(Digest, Compiled)> {
        let shape = examine(bytes).ok()?;
        let digest = Digest::from_content(bytes);
        let started = Instant::now();
        let component = self
            .compiler
            .compile(&self.class(shape.class()).inner, bytes)
            .ok()?;
        let took = started.elapsed();
        let code = component.serialize().ok()?;
        self.ahead.insert(digest, (component, took));
        Some((digest, Compiled { code, took }))
    }

    /// Reports if a component can be loaded without compiling bytes that nobody admitted: its
    /// code is in the cache, or the program bundles it.
    pub fn is_ready(&self, digest: Digest, bytes: &[u8]) -> bool {
        let bundled = || builtin::contains(bytes);
        let cached = || {
            let class = Shape::read(bytes).ok()?.class();
            let cache = self.cache.as_ref()?;
            cache.load(&self.class(class).inner, digest)
        };
        bundled() || cached().is_some()
    }

    /// Loads a component that a child process compiled, and keeps its code in the cache.
    ///
    /// # Errors
    /// Fails if the code does not fit this engine, or as [`Engine::load`] does.
    pub fn load_compiled(&self, bytes: &[u8], compiled: &Compiled) -> Result<Module, ModuleError> {
        let shape = examine(bytes)?;
        let engine = self.class(shape.class());
        let digest = Digest::from_content(bytes);
        let code = &compiled.code;
        let component = match &self.cache {
            Some(cache) => cache.adopt(&engine.inner, digest, code),
            None => {
                Seal::for_this_process().and_then(|seal| seal.adopt(&engine.inner, digest, code))
            }
        };
        let component = component.map_err(|error| ModuleError::Invalid(format!("{error:#}")))?;
        let origin = Origin {
            digest,
            shape,
            compiled_in: Some(compiled.took),
        };
        Module::link(engine.clone(), origin, &component)
    }

    pub fn trusted_keys(&self) -> &TrustedKeys {
        &self.trusted_keys
    }

    /// Returns the memory budget of all instances.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.standard.common.memory
    }

    /// Returns how instances get their memory.
    pub fn allocation(&self) -> Allocation {
        self.standard.common.allocation
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
        let engine = ClassEngine::metered(shape.class(), &self.standard.common)
            .map_err(|error| ModuleError::Invalid(format!("{error:#}")))?;
        let component = self
            .compiler
            .compile_upload(&engine.inner, bytes, COMPILE_TIME_MAX)?;
        let origin = Origin {
            digest: Digest::from_content(bytes),
            shape,
            compiled_in: None,
        };
        Module::link(Arc::new(engine), origin, &component)
    }

    fn load_as(&self, trust: Trust, bytes: &[u8]) -> Result<Module, ModuleError> {
        let shape = examine(bytes)?;
        let engine = self.class(shape.class());
        let digest = Digest::from_content(bytes);
        let link = |component: &Component, compiled_in| {
            let origin = Origin {
                digest,
                shape,
                compiled_in,
            };
            Module::link(engine.clone(), origin, component)
        };
        if let Some((component, took)) = self.ahead.get(&digest) {
            return link(component, Some(*took));
        }
        let cached = self.cache.as_ref();
        if let Some(component) = cached.and_then(|cache| cache.load(&engine.inner, digest)) {
            return link(&component, None);
        }
        let started = Instant::now();
        let component = match trust {
            Trust::Published => self
                .compiler
                .compile(&engine.inner, bytes)
                .map_err(CompileError::Invalid)?,
            // Only if the code left the cache a moment ago: what is not there goes to the worker.
            Trust::Uploaded if self.worker.is_some() && !builtin::contains(bytes) => {
                return Err(CompileError::Busy.into());
            }
            Trust::Uploaded => {
                self.compiler
                    .compile_upload(&engine.inner, bytes, COMPILE_TIME_MAX)?
            }
        };
        let took = started.elapsed();
        if let Some(cache) = cached {
            cache.keep(&engine.inner, digest, &component);
        }
        link(&component, Some(took))
    }
}

/// Creates the engine of each class. If the pools cannot be reserved, instances are allocated one
/// by one: a machine with few addresses refuses the reservation without having a limit to read.
fn class_engines(common: Common) -> anyhow::Result<[ClassEngine; 2]> {
    let create = |common: &Common| -> anyhow::Result<[ClassEngine; 2]> {
        Ok([
            ClassEngine::new(Class::Standard, common)?,
            ClassEngine::new(Class::Large, common)?,
        ])
    };
    match create(&common) {
        Err(error) if common.allocation == Allocation::Pooled => {
            tracing::debug!(
                error = format!("{error:#}"),
                "could not reserve address space"
            );
            create(&Common {
                allocation: Allocation::OnDemand,
                ..common
            })
        }
        created => created,
    }
}

/// Checks with the parser alone what a component may be, before anything is compiled.
fn examine(bytes: &[u8]) -> Result<Shape, ModuleError> {
    refuse_core_module(bytes)?;
    let shape = Shape::read(bytes).map_err(ModuleError::Invalid)?;
    if let Some(reason) = shape.too_complex() {
        return Err(ModuleError::TooComplex(reason));
    }
    check_surface(bytes)?;
    Ok(shape)
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
