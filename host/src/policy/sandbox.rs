//! What surrounds one instance: its memory cap and the record of why growth was refused.

use super::class::{ClassLimits, MEMORIES_MAX};

/// State of a store: one policy instance lives in it.
#[derive(Debug)]
pub struct Sandbox {
    memory_cap_bytes: usize,
    memory_denied: bool,
    memory_bytes: usize,
    limits: &'static ClassLimits,
}

impl Sandbox {
    pub fn new(memory_cap_bytes: usize, limits: &'static ClassLimits) -> Self {
        Self {
            memory_cap_bytes,
            memory_denied: false,
            memory_bytes: 0,
            limits,
        }
    }

    /// A refusal in an earlier call says nothing about this one, and the earlier one may have been another policy's, with
    /// another cap.
    pub fn begin_call(&mut self, memory_cap_bytes: usize) {
        self.memory_cap_bytes = memory_cap_bytes;
        self.memory_denied = false;
    }

    /// Whether the guest asked for more memory than it may have. A guest that is refused memory
    /// traps like any other, so this is how the two are told apart.
    pub fn memory_denied(&self) -> bool {
        self.memory_denied
    }

    /// Linear memory as it is, which is as large as it ever was.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
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
        if granted {
            self.memory_bytes = desired;
        }
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
