//! The resource limits of one instance, and the record of whether memory growth was refused.

use super::class::{ClassLimits, MEMORIES_MAX};

/// State of a wasmtime store, which holds one policy instance.
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

    /// Prepares for the next call. A refusal in an earlier call says nothing about this one, and
    /// the earlier call may have come from another policy with another cap.
    pub fn begin_call(&mut self, memory_cap_bytes: usize) {
        self.memory_cap_bytes = memory_cap_bytes;
        self.memory_denied = false;
    }

    /// Reports if the guest requested more memory than it may have. A guest traps in the same way
    /// when memory is refused, so this flag distinguishes the two failures.
    pub fn memory_denied(&self) -> bool {
        self.memory_denied
    }

    /// Returns the current size of linear memory, which never shrinks.
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
