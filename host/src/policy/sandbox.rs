//! What surrounds one instance: its memory cap and the record of why growth was refused.

use super::class::{ClassLimits, MEMORIES_MAX};

/// State of a store: one policy instance lives in it.
#[derive(Debug)]
pub struct Sandbox {
    memory_cap_bytes: usize,
    memory_denied: bool,
    limits: &'static ClassLimits,
}

impl Sandbox {
    pub fn new(memory_cap_bytes: usize, limits: &'static ClassLimits) -> Self {
        Self {
            memory_cap_bytes,
            memory_denied: false,
            limits,
        }
    }

    /// A refusal in an earlier call says nothing about this one.
    pub fn begin_call(&mut self) {
        self.memory_denied = false;
    }

    /// Whether the guest asked for more memory than it may have. A guest that is refused memory
    /// traps like any other, so this is how the two are told apart.
    pub fn memory_denied(&self) -> bool {
        self.memory_denied
    }
}

impl wasmtime::ResourceLimiter for Sandbox {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let granted = desired <= self.memory_cap_bytes;
        self.memory_denied |= !granted;
        Ok(granted)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= self.limits.table_elements)
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX as usize
    }

    fn instances(&self) -> usize {
        self.limits.core_instances as usize
    }
}
