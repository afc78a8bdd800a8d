//! The WebAssembly engine of one resource class: its settings, its instances and its meter.

use super::class::{Class, ClassLimits, MEMORIES_MAX, MEMORY_MB_MAX};
use super::memory::Memory;
use super::meter::Meter;
use super::sandbox::Sandbox;
use super::settings::{Allocation, EngineSettings};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use wasmtime::component::Linker;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Fuel limit of one `describe` call on a metered engine, where fuel replaces the deadline.
const DESCRIBE_FUEL_MAX: u64 = 1_000_000_000;
/// Address space that an instance takes at first if instances are allocated one by one, and by
/// which it grows. A policy in Rust never needs more.
const ON_DEMAND_STEP_BYTES: u64 = 16 << 20;
const ON_DEMAND_GUARD_BYTES: u64 = 64 << 10;

/// What the engines of all classes have in common.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub settings: EngineSettings,
    pub allocation: Allocation,
    /// False in a process that checks one upload: it compiles for pooled instances without
    /// reserving a pool.
    pub has_pool: bool,
    pub memory: Arc<Memory>,
}

/// The engine of one class, with the number of its idle instances.
pub(super) struct ClassEngine {
    pub class: Class,
    pub common: Common,
    pub inner: wasmtime::Engine,
    pub linker: Linker<Sandbox>,
    idle: AtomicU32,
    /// Set only on engines that measure calls, never on those that serve.
    pub meter: Option<Meter>,
}

impl ClassEngine {
    /// # Errors
    /// Fails if the address space for the pool cannot be reserved.
    pub fn new(class: Class, common: &Common) -> anyhow::Result<Self> {
        let mut config = Self::config(class.limits(), common.allocation);
        config.epoch_interruption(true);
        if common.has_pool && common.allocation == Allocation::Pooled {
            config.allocation_strategy(Self::pool(class.limits(), &common.settings));
        }
        Self::with_config(class, common, &config, None)
    }

    /// Creates an engine that limits calls by fuel alone. The same call uses the same fuel on
    /// every machine. Every byte that a bulk operation touches costs fuel, so fuel bounds time as
    /// well.
    pub fn metered(class: Class, common: &Common) -> anyhow::Result<Self> {
        let mut config = Self::config(class.limits(), common.allocation);
        config.consume_fuel(true);
        let meter = Meter::new(DESCRIBE_FUEL_MAX);
        Self::with_config(class, common, &config, Some(meter))
    }

    fn with_config(
        class: Class,
        common: &Common,
        config: &Config,
        meter: Option<Meter>,
    ) -> anyhow::Result<Self> {
        let inner = wasmtime::Engine::new(config).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let linker = Linker::new(&inner);
        Ok(Self {
            class,
            common: common.clone(),
            inner,
            linker,
            idle: AtomicU32::new(0),
            meter,
        })
    }

    pub fn limits(&self) -> &'static ClassLimits {
        self.class.limits()
    }

    /// Returns the settings common to all engines. The first ones affect the output of a guest.
    fn config(limits: &ClassLimits, allocation: Allocation) -> Config {
        let mut config = Config::new();
        config
            .concurrency_support(false)
            .wasm_relaxed_simd(false) // gives the same bits on every processor
            // Processors differ in the bits of a NaN that an operation produces, and a guest can
            // read them.
            .cranelift_nan_canonicalization(true)
            .max_wasm_stack(limits.guest_stack_bytes);
        if allocation == Allocation::OnDemand {
            config
                .memory_reservation(ON_DEMAND_STEP_BYTES)
                .memory_reservation_for_growth(ON_DEMAND_STEP_BYTES)
                .memory_may_move(true)
                .memory_guard_size(ON_DEMAND_GUARD_BYTES)
                .guard_before_linear_memory(false);
        }
        config
    }

    fn pool(limits: &ClassLimits, settings: &EngineSettings) -> InstanceAllocationStrategy {
        let slots = settings.slots(limits);
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(slots)
            .total_core_instances(slots * limits.core_instances)
            .total_memories(slots * MEMORIES_MAX)
            .total_tables(slots * limits.tables)
            .max_core_instances_per_component(limits.core_instances)
            .max_memories_per_component(MEMORIES_MAX)
            .max_tables_per_component(limits.tables)
            .max_component_instance_size(limits.instance_bytes)
            .table_elements(limits.table_elements)
            .max_memory_size((MEMORY_MB_MAX as usize) << 20)
            .linear_memory_keep_resident(settings.kept_bytes(limits) as usize)
            .table_keep_resident(64 << 10)
            // If the kernel can report which pages were touched, only those are cleared.
            .pagemap_scan(Enabled::Auto)
            .max_unused_warm_slots(limits.warm_slots);
        InstanceAllocationStrategy::Pooling(pool)
    }

    /// Counts one more idle instance of this size. Returns false if a limit is reached.
    pub fn begin_idle(&self, bytes: u64) -> bool {
        let grow = |idle| (idle < self.limits().idle).then_some(idle + 1);
        let begun = self
            .idle
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow)
            .is_ok();
        if begun && !self.common.memory.begin_idle(bytes) {
            self.idle.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        begun
    }

    pub fn end_idle(&self, bytes: u64) {
        self.idle.fetch_sub(1, Ordering::Relaxed);
        self.common.memory.end_idle(bytes);
    }
}

pub(super) fn root_cause(error: &wasmtime::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use wasm_encoder::{
        CodeSection, ExportKind, ExportSection, Function, FunctionSection, Ieee32, TypeSection,
        ValType,
    };

    /// A module whose function divides 0 by 0 and returns the bits of the result.
    fn nan_bits() -> Vec<u8> {
        let mut types = TypeSection::new();
        types.ty().function([ValType::F32], [ValType::I32]);
        let mut functions = FunctionSection::new();
        functions.function(0);
        let mut exports = ExportSection::new();
        exports.export("bits", ExportKind::Func, 0);
        let mut body = Function::new([]);
        body.instructions()
            .local_get(0)
            .f32_const(Ieee32::from(0.0_f32))
            .f32_div()
            .i32_reinterpret_f32()
            .end();
        let mut code = CodeSection::new();
        code.function(&body);
        let mut module = wasm_encoder::Module::new();
        module
            .section(&types)
            .section(&functions)
            .section(&exports)
            .section(&code);
        module.finish()
    }

    #[test]
    fn the_bits_of_a_nan_are_the_same_on_every_processor() {
        for allocation in [Allocation::Pooled, Allocation::OnDemand] {
            let config = ClassEngine::config(Class::Standard.limits(), allocation);
            let engine = wasmtime::Engine::new(&config).unwrap();
            let module = wasmtime::Module::new(&engine, nan_bits()).unwrap();
            let mut store = wasmtime::Store::new(&engine, ());
            let instance = wasmtime::Instance::new(&mut store, &module, &[]).unwrap();
            let bits = instance
                .get_typed_func::<f32, i32>(&mut store, "bits")
                .unwrap();
            // 0 / 0, and an operand that is a NaN with other bits.
            for operand in [0.0, f32::from_bits(0xffc1_2345)] {
                let bits = bits.call(&mut store, operand).unwrap();
                assert_eq!(
                    bits.cast_unsigned(),
                    0x7fc0_0000,
                    "{operand} {allocation:?}"
                );
            }
        }
    }
}
