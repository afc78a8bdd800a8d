//! What the operator and the machine allow the engine, and the allocation of instances that
//! follows from it.

use super::class::{Class, ClassLimits, MEMORIES_MAX};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Address space that one linear memory takes in the pool: wasmtime's reservation of 4 GiB, which
/// makes bounds checks unnecessary, and the guard behind it.
const POOLED_MEMORY_BYTES: u64 = (4 << 30) + (32 << 20);
/// Part of the memory budget that returned slots may keep mapped, over all classes.
const KEPT_SHARE: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineSettings {
    /// Maximum number of rankings that run at once, with everything that runs policies.
    pub rankings_max: u32,
    /// Memory of all instances together.
    pub memory_bytes: u64,
    /// Upper limit for the deadlines of all policies.
    pub deadline_max: Duration,
    /// Address space that the process may use. `None` if it is unlimited.
    pub address_space_bytes: Option<u64>,
}

impl EngineSettings {
    /// Settings of commands, which run a few policies and then end. A policy has the deadline of
    /// its manifest.
    pub fn for_commands() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            rankings_max: u32::try_from(cores).unwrap_or(u32::MAX).min(1_000) + 16,
            memory_bytes: u64::MAX / 2,
            deadline_max: Duration::MAX,
            address_space_bytes: address_space_bytes(),
        }
    }

    /// Returns the number of instances of a class that may exist at once: two for each ranking,
    /// because an answer of a reused instance is compared with that of a fresh one now and then,
    /// and the idle ones.
    pub(super) fn slots(&self, limits: &ClassLimits) -> u32 {
        self.rankings_max.saturating_mul(2) + limits.idle
    }

    /// Returns the bytes that a returned slot keeps mapped. The bytes of all slots stay below
    /// a fixed part of the memory budget.
    pub(super) fn kept_bytes(&self, limits: &ClassLimits) -> u64 {
        let slots = u64::from(self.slots(limits));
        let share = self.memory_bytes / KEPT_SHARE / Class::ALL.len() as u64 / slots;
        // wasmtime keeps whole pages.
        (share & !0xfff).min(limits.keep_resident_bytes)
    }

    pub(super) fn allocation(&self) -> Allocation {
        let slots = Class::ALL.map(|class| u64::from(self.slots(class.limits())));
        let needed = slots.iter().sum::<u64>() * u64::from(MEMORIES_MAX) * POOLED_MEMORY_BYTES;
        match self.address_space_bytes {
            // The rest of the process needs addresses as well: threads, the allocator, compiled
            // code.
            Some(allowed) if needed > allowed / 2 => Allocation::OnDemand,
            _ => Allocation::Pooled,
        }
    }
}

/// How instances get their memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allocation {
    /// From slots that are reserved once, which is the fastest.
    Pooled,
    /// One by one, with bounds checks in compiled code. This needs little address space.
    OnDemand,
}

impl Allocation {
    pub fn as_str(self) -> &'static str {
        match self {
            Allocation::Pooled => "pooled",
            Allocation::OnDemand => "on_demand",
        }
    }
}

/// Returns the limit on the address space of this process (`ulimit -v`), if there is one.
pub fn address_space_bytes() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::As).current
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(
        rankings_max: u32,
        memory_bytes: u64,
        address_space: Option<u64>,
    ) -> EngineSettings {
        EngineSettings {
            rankings_max,
            memory_bytes,
            deadline_max: Duration::MAX,
            address_space_bytes: address_space,
        }
    }

    #[test]
    fn the_pool_is_used_only_if_half_of_the_address_space_is_enough_for_it() {
        let allocation = |limit| settings(20, 1 << 30, limit).allocation();
        assert_eq!(allocation(None), Allocation::Pooled);
        assert_eq!(allocation(Some(16 << 40)), Allocation::Pooled);
        assert_eq!(allocation(Some(512 << 30)), Allocation::OnDemand);
        assert_eq!(allocation(Some(64 << 30)), Allocation::OnDemand);
    }

    #[test]
    fn slots_follow_the_number_of_rankings_and_returned_ones_keep_an_eighth_of_the_budget() {
        for rankings_max in [1, 2, 40, 200, 1_000] {
            for memory_bytes in [64 << 20, 256 << 20, 6 << 30, u64::MAX / 2] {
                let settings = settings(rankings_max, memory_bytes, None);
                let mut kept = 0;
                for class in Class::ALL {
                    let limits = class.limits();
                    assert!(settings.slots(limits) >= 2 * rankings_max + limits.idle);
                    kept += settings.kept_bytes(limits) * u64::from(settings.slots(limits));
                }
                assert!(
                    kept <= memory_bytes / KEPT_SHARE,
                    "{rankings_max} {memory_bytes}"
                );
            }
        }
    }
}
