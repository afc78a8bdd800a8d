//! The WebAssembly engine of one resource class: its settings, its pool of instances and its
//! meter.

use super::class::{Class, ClassLimits, MEMORIES_MAX, MEMORY_MB_MAX};
use super::meter::Meter;
use super::sandbox::Sandbox;
use std::sync::atomic::{AtomicUsize, Ordering};
use wasmtime::component::Linker;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Fuel limit of one `describe` call on a metered engine, where fuel replaces the deadline.
const DESCRIBE_FUEL_MAX: u64 = 1_000_000_000;

/// The engine of one class, with the number of its slots that hold idle instances.
pub(super) struct ClassEngine {
    pub limits: &'static ClassLimits,
    pub inner: wasmtime::Engine,
    pub linker: Linker<Sandbox>,
    idle: AtomicUsize,
    /// Set only on engines that measure calls, never on those that serve.
    pub meter: Option<Meter>,
}

impl ClassEngine {
    pub fn new(class: Class) -> anyhow::Result<Self> {
        let limits = class.limits();
        let mut config = Self::config(limits);
        config
            .allocation_strategy(Self::pool(limits))
            .epoch_interruption(true);
        Self::with_config(limits, &config, None)
    }

    /// Creates an engine that limits calls by fuel alone. The same call uses the same fuel on
    /// every machine. Every byte that a bulk operation touches costs fuel, so fuel bounds time as
    /// well.
    pub fn metered(class: Class) -> anyhow::Result<Self> {
        let limits = class.limits();
        let mut config = Self::config(limits);
        config.consume_fuel(true);
        Self::with_config(limits, &config, Some(Meter::new(DESCRIBE_FUEL_MAX)))
    }

    fn with_config(
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
}

pub(super) fn root_cause(error: &wasmtime::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
