//! What surrounds one instance: its memory cap and the record of why growth was refused.

/// State of a store: one policy instance lives in it.
#[derive(Debug)]
pub struct Sandbox {
    memory_cap_bytes: usize,
    memory_denied: bool,
}

/// A table entry is eight bytes; 20,000 of them are far more than a policy's function table.
pub const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Core instances of one component: the module itself and the adapters an encoder may add.
pub const CORE_INSTANCES_MAX: u32 = 8;

impl Sandbox {
    pub fn new(memory_cap_bytes: usize) -> Self {
        Self {
            memory_cap_bytes,
            memory_denied: false,
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
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    // The cap above is per memory, so a guest with several would multiply it.
    fn memories(&self) -> usize {
        1
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX as usize
    }
}
