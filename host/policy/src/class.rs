//! Resource classes: the number of idle policy instances, and the size limits of each instance.
//!
//! A policy compiled from Rust is one small core module. A policy with a Python or JavaScript
//! interpreter is a dozen megabytes of code, with tens of megabytes of memory and many core
//! modules linked together. Slots large enough for both would make returning a Rust instance's
//! slot more expensive, and a few interpreters could take all the slots. So each class has its
//! own engine.
//!
//! The class follows from the component itself ([`Shape::class`](super::shape::Shape::class)),
//! not from the manifest. An author therefore cannot choose the wrong one, and a digest is
//! compiled in the same way on every host.

/// Maximum memory of an instance in any class, in MiB. It reserves address space, not memory. A
/// policy's own limit is lower.
pub const MEMORY_MB_MAX: u32 = 256;

/// Maximum number of memories in one component. The memory cap applies to each memory, so several
/// would multiply it.
pub const MEMORIES_MAX: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// One module and one or two adapters, as `nova policy build` produces from Rust.
    Standard,
    /// A policy with its language's interpreter.
    Large,
}

/// All limits of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassLimits {
    /// Maximum number of idle instances. They also keep within the memory budget.
    pub idle: u32,
    /// Maximum number of core instances in one component.
    pub core_instances: u32,
    /// Maximum number of tables in one component.
    pub tables: u32,
    /// Maximum number of elements in one table. Each takes eight bytes.
    pub table_elements: usize,
    /// Maximum memory that the host needs for one component instance, in addition to its linear
    /// memory.
    pub instance_bytes: usize,
    /// The same memory as the memory budget counts it.
    pub overhead_bytes: u64,
    pub guest_stack_bytes: usize,
    /// Maximum number of bytes that stay mapped in a returned slot. Without this, page faults
    /// caused the difference in time between fresh and reused instances.
    pub keep_resident_bytes: u64,
    /// Number of returned slots that keep those pages mapped.
    pub warm_slots: u32,
    pub describe_memory_bytes: usize,
}

const STANDARD: ClassLimits = ClassLimits {
    idle: 128,
    core_instances: 8,
    tables: 8,
    // Far more than a policy's function table needs.
    table_elements: 20_000,
    instance_bytes: 1 << 20,
    overhead_bytes: 64 << 10,
    // Wasmtime's default, which is ample for flat loops. It is stated here because it is a bound.
    guest_stack_bytes: 512 << 10,
    keep_resident_bytes: 1 << 20,
    warm_slots: 64,
    describe_memory_bytes: 64 << 20,
};

/// Observed sizes: Python has 38 core instances, 2 tables of up to 5,670 elements and 12 MiB of
/// initial memory. JavaScript has 1 core instance, 1 table of 7,688 elements and 9 MiB.
const LARGE: ClassLimits = ClassLimits {
    idle: 24,
    core_instances: 128,
    tables: 16,
    table_elements: 40_000,
    instance_bytes: 8 << 20,
    overhead_bytes: 512 << 10,
    // An interpreter recurses. The threads that run policies have a stack of 2 MiB.
    guest_stack_bytes: 1 << 20,
    keep_resident_bytes: 4 << 20,
    warm_slots: 8,
    describe_memory_bytes: (MEMORY_MB_MAX as usize) << 20,
};

impl Class {
    pub const ALL: [Self; 2] = [Self::Standard, Self::Large];

    pub const fn limits(self) -> &'static ClassLimits {
        match self {
            Class::Standard => &STANDARD,
            Class::Large => &LARGE,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Class::Standard => "standard",
            Class::Large => "large",
        }
    }
}
