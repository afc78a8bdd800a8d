//! The resource limits of one instance, and the record of whether growth was refused.

use super::class::{Class, MEMORIES_MAX};
use super::memory::{Claim, Reservation};

/// Size of one element of a table.
const TABLE_ELEMENT_BYTES: u64 = 8;

/// Who refused an instance more memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The policy's own limit is reached.
    Policy,
    /// The memory of the host is spent.
    Host,
}

/// State of a wasmtime store, which holds one policy instance.
#[derive(Debug)]
pub struct Sandbox {
    memory_cap_bytes: usize,
    memory_bytes: usize,
    refusal: Option<Refusal>,
    claim: Claim,
    reservation: Reservation,
    class: Class,
}

impl Sandbox {
    /// Reserves what an instance needs at least. Returns `None` if the host has no memory left.
    pub(super) fn new(
        memory_cap_bytes: usize,
        claim: Claim,
        mut reservation: Reservation,
        class: Class,
    ) -> Option<Self> {
        reservation
            .grow(class.limits().overhead_bytes, claim)
            .then_some(Self {
                memory_cap_bytes,
                memory_bytes: 0,
                refusal: None,
                claim,
                reservation,
                class,
            })
    }

    /// Prepares for the next call. A refusal in an earlier call says nothing about this one, and
    /// the earlier call may have come from another policy with another cap.
    pub(super) fn begin_call(&mut self, memory_cap_bytes: usize, claim: Claim) {
        self.memory_cap_bytes = memory_cap_bytes;
        self.claim = claim;
        self.refusal = None;
    }

    /// Reports if the instance was refused memory, and by whom. A guest traps in the same way in
    /// both cases.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// Returns the current size of linear memory, which never shrinks.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Returns the bytes that the instance has reserved.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reservation.bytes()
    }

    fn refuse(&mut self, by: Refusal) -> wasmtime::Result<bool> {
        self.refusal = Some(by);
        Ok(false)
    }
}

impl wasmtime::ResourceLimiter for Sandbox {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > self.memory_cap_bytes {
            return self.refuse(Refusal::Policy);
        }
        let more = desired.saturating_sub(current) as u64;
        if !self.reservation.grow(more, self.claim) {
            return self.refuse(Refusal::Host);
        }
        self.memory_bytes = desired;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > self.class.limits().table_elements {
            return Ok(false);
        }
        let more = desired.saturating_sub(current) as u64 * TABLE_ELEMENT_BYTES;
        match self.reservation.grow(more, self.claim) {
            true => Ok(true),
            false => self.refuse(Refusal::Host),
        }
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX as usize
    }

    fn instances(&self) -> usize {
        self.class.limits().core_instances as usize
    }
}
