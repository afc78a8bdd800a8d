//! Measurement of a call on a metered engine: fuel, which is the deterministic unit of work, and
//! memory.

use std::sync::atomic::{AtomicU64, Ordering};

/// The resource use of the last call. Each admission has its own meter, so there is only one call
/// at a time.
#[derive(Debug)]
pub struct Meter {
    fuel_max: AtomicU64,
    fuel: AtomicU64,
    memory_bytes: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    pub fuel: u64,
    /// Peak size of linear memory.
    pub memory_bytes: u64,
}

impl Meter {
    pub fn new(fuel_max: u64) -> Self {
        Self {
            fuel_max: AtomicU64::new(fuel_max),
            fuel: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
        }
    }

    /// Returns the fuel limit of a call. A call that uses more is stopped.
    pub fn fuel_max(&self) -> u64 {
        self.fuel_max.load(Ordering::Relaxed)
    }

    /// Sets the fuel limit of all later calls.
    pub fn set_fuel_max(&self, fuel_max: u64) {
        self.fuel_max.store(fuel_max, Ordering::Relaxed);
    }

    pub fn record(&self, fuel_left: u64, memory_bytes: usize) {
        let fuel = self.fuel_max().saturating_sub(fuel_left);
        self.fuel.store(fuel, Ordering::Relaxed);
        self.memory_bytes
            .store(memory_bytes as u64, Ordering::Relaxed);
    }

    pub fn used(&self) -> Used {
        Used {
            fuel: self.fuel.load(Ordering::Relaxed),
            memory_bytes: self.memory_bytes.load(Ordering::Relaxed),
        }
    }
}
