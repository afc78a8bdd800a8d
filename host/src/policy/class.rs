//! Resource classes: how many instances of a kind of policy may exist at once, and how large each may be.
//!
//! A policy compiled from Rust is one small core module; one that carries a Python or JavaScript
//! interpreter is a dozen megabytes with tens of megabytes of memory and many core modules linked
//! together. Slots wide enough for both would make every return of a Rust instance's slot dearer,
//! and a few interpreters could starve all other policies of slots; so each class is an engine of its own.
//!
//! The class follows from the component itself ([`Shape::class`](super::shape::Shape::class)), not
//! from the manifest: an author cannot choose wrongly, and one digest is compiled one way on every host.

/// Address space, not memory: what an instance can grow to at most, whatever its class. A policy's own limit is lower.
pub const MEMORY_MB_MAX: u32 = 256;

/// In one component: the cap on memory is for each, so a guest with several would multiply it.
pub const MEMORIES_MAX: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// One module and an adapter or two: what `nova policy build` makes from Rust.
    Standard,
    /// A language with its interpreter.
    Large,
}

/// Everything a class bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassLimits {
    /// Instances that can exist at once: running calls (one per worker) and idle ones kept for reuse.
    pub slots: u32,
    /// Of the slots, those that may be idle.
    pub idle: usize,
    /// In one component.
    pub core_instances: u32,
    /// In one component.
    pub tables: u32,
    /// In one table; eight bytes each.
    pub table_elements: usize,
    /// What the host keeps of one component instance beside its memory.
    pub instance_bytes: usize,
    pub guest_stack_bytes: usize,
    /// Pages that stay mapped in a returned slot: page faults were the gap between fresh and reused instances.
    pub keep_resident_bytes: usize,
    /// Returned slots that keep those pages.
    pub warm_slots: u32,
    pub describe_memory_bytes: usize,
}

const STANDARD: ClassLimits = ClassLimits {
    slots: 256,
    idle: 128,
    core_instances: 8,
    tables: 8,
    // Far more than a policy's function table.
    table_elements: 20_000,
    instance_bytes: 1 << 20,
    // The default, ample for flat loops; stated because it is a bound.
    guest_stack_bytes: 512 << 10,
    keep_resident_bytes: 1 << 20,
    warm_slots: 64,
    describe_memory_bytes: 64 << 20,
};

/// Seen: Python 38 core instances, 2 tables of up to 5,670 entries, 12 MiB to begin with; JavaScript 1, 1 of 7,688, 9 MiB.
/// Idle instances hold their memory: 24 of them with the 64 MB such policies ask for are 1.5 GiB.
const LARGE: ClassLimits = ClassLimits {
    slots: 64,
    idle: 24,
    core_instances: 128,
    tables: 16,
    table_elements: 40_000,
    instance_bytes: 8 << 20,
    // An interpreter recurses; the threads that run policies have 2 MiB.
    guest_stack_bytes: 1 << 20,
    keep_resident_bytes: 4 << 20,
    warm_slots: 8,
    describe_memory_bytes: (MEMORY_MB_MAX as usize) << 20,
};

impl Class {
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
