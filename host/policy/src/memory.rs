//! The memory budget: one limit in bytes for the instances of all policies together. Bytes are
//! reserved before an instance is created or grows, so the limit holds at every moment. If the
//! budget is spent, idle instances are dropped first, and then the call fails with a cause that
//! is the host's and not the policy's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Time after which an unused instance is dropped.
pub const IDLE_AGE_MAX: Duration = Duration::from_secs(60);

/// What the memory is for, which decides how much of the budget it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The call serves viewers of the active policy. It may use the whole budget.
    Active,
    /// The call serves another policy or no viewer. It leaves a quarter of the budget, so that it
    /// cannot take the active policy out of service.
    Other,
    /// The instance describes a module that is being loaded. It is counted but never refused:
    /// otherwise full memory would keep a policy from being loaded, and a rollback with it. A
    /// module's size and the number of loads at a time are bounded elsewhere.
    Load,
}

/// The idle instances of one module.
pub(super) trait IdleSet: Send + Sync {
    /// Returns the time since which the instance that waits for longest has been idle.
    fn oldest(&self) -> Option<Instant>;
    /// Drops the instance that waits for longest, if it has been idle since `since` or before.
    fn drop_oldest(&self, since: Instant) -> bool;
}

/// Use of the budget at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    pub budget: u64,
    /// Reserved by running and idle instances.
    pub used: u64,
    /// The part of `used` that idle instances hold.
    pub idle: u64,
    /// Number of reservations that were refused since the start.
    pub refused: u64,
}

#[derive(Default)]
pub struct Memory {
    budget: u64,
    used: AtomicU64,
    idle: AtomicU64,
    refused: AtomicU64,
    idle_sets: Mutex<Vec<Weak<dyn IdleSet>>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.usage().fmt(f)
    }
}

impl Memory {
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget: budget_bytes,
            ..Self::default()
        }
    }

    pub fn usage(&self) -> MemoryUse {
        MemoryUse {
            budget: self.budget,
            used: self.used.load(Ordering::Relaxed),
            idle: self.idle.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// Drops all instances that have not been used for `age_max`.
    pub fn expire_idle(&self, now: Instant, age_max: Duration) {
        let Some(since) = now.checked_sub(age_max) else {
            return;
        };
        for set in self.idle_sets() {
            while set.drop_oldest(since) {}
        }
    }

    pub(super) fn register(&self, set: Weak<dyn IdleSet>) {
        let mut sets = self
            .idle_sets
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        sets.retain(|set| set.strong_count() > 0);
        sets.push(set);
    }

    /// Counts an instance of this size as idle. Returns false if idle instances may not hold that
    /// much: at most half of the budget, so that instances can be created without dropping others
    /// first. Instances that wait for longer make room.
    pub(super) fn begin_idle(&self, bytes: u64) -> bool {
        let idle_max = self.budget / 2;
        let grow = |idle: u64| idle.checked_add(bytes).filter(|idle| *idle <= idle_max);
        loop {
            let begun = self
                .idle
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
            if begun.is_ok() {
                return true;
            }
            if bytes > idle_max || !self.drop_oldest() {
                return false;
            }
        }
    }

    pub(super) fn end_idle(&self, bytes: u64) {
        self.idle.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Reserves `bytes`. Idle instances are dropped if they are in the way.
    fn reserve(&self, bytes: u64, claim: Claim) -> bool {
        let limit = match claim {
            Claim::Active => self.budget,
            Claim::Other => self.budget / 4 * 3,
            Claim::Load => u64::MAX,
        };
        let grow = |used: u64| used.checked_add(bytes).filter(|used| *used <= limit);
        loop {
            let reserved = self
                .used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
            if reserved.is_ok() {
                return true;
            }
            if bytes > limit || !self.drop_oldest() {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return false;
            }
        }
    }

    /// Drops the instance of all modules that has been idle for longest.
    fn drop_oldest(&self) -> bool {
        let sets = self.idle_sets();
        let oldest = sets.iter().filter_map(|set| Some((set.oldest()?, set)));
        // Another thread may take the instance meanwhile. Then there is still progress: the
        // caller tries to reserve again.
        match oldest.min_by_key(|(since, _)| *since) {
            Some((since, set)) => {
                set.drop_oldest(since);
                true
            }
            None => false,
        }
    }

    /// Returns the sets, so that no lock is held while instances are dropped.
    fn idle_sets(&self) -> Vec<Arc<dyn IdleSet>> {
        let sets = self
            .idle_sets
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        sets.iter().filter_map(Weak::upgrade).collect()
    }
}

/// The bytes that one instance has reserved. They are released when it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    memory: Arc<Memory>,
    /// Bytes of all instances of the same module.
    of_module: Arc<AtomicU64>,
    bytes: u64,
}

impl Reservation {
    pub fn new(memory: Arc<Memory>, of_module: Arc<AtomicU64>) -> Self {
        Self {
            memory,
            of_module,
            bytes: 0,
        }
    }

    /// Reserves `more` bytes. Returns false if the budget does not have them.
    pub fn grow(&mut self, more: u64, claim: Claim) -> bool {
        let granted = self.memory.reserve(more, claim);
        if granted {
            self.bytes += more;
            self.of_module.fetch_add(more, Ordering::Relaxed);
        }
        granted
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.of_module.fetch_sub(self.bytes, Ordering::Relaxed);
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Idle instances that are nothing but their reservations.
    struct Set {
        memory: Arc<Memory>,
        idle: Mutex<VecDeque<(Instant, Reservation)>>,
    }

    impl Set {
        fn new(memory: &Arc<Memory>) -> Arc<Self> {
            let set = Arc::new(Self {
                memory: memory.clone(),
                idle: Mutex::default(),
            });
            let weak: Weak<Self> = Arc::downgrade(&set);
            memory.register(weak);
            set
        }

        fn keep(&self, since: Instant, reservation: Reservation) -> bool {
            let kept = self.memory.begin_idle(reservation.bytes());
            if kept {
                self.idle.lock().unwrap().push_back((since, reservation));
            }
            kept
        }

        fn len(&self) -> usize {
            self.idle.lock().unwrap().len()
        }
    }

    impl IdleSet for Set {
        fn oldest(&self) -> Option<Instant> {
            self.idle.lock().unwrap().front().map(|(since, _)| *since)
        }

        fn drop_oldest(&self, since: Instant) -> bool {
            let mut idle = self.idle.lock().unwrap();
            if idle.front().is_none_or(|(at, _)| *at > since) {
                return false;
            }
            let dropped = idle.pop_front();
            drop(idle);
            let bytes = dropped.map_or(0, |(_, reservation)| reservation.bytes());
            self.memory.end_idle(bytes);
            true
        }
    }

    fn reserved(memory: &Arc<Memory>, bytes: u64, claim: Claim) -> Option<Reservation> {
        let mut reservation = Reservation::new(memory.clone(), Arc::default());
        reservation.grow(bytes, claim).then_some(reservation)
    }

    #[test]
    fn a_quarter_of_the_budget_is_left_to_the_active_policy() {
        let memory = Arc::new(Memory::new(100));
        let other = reserved(&memory, 75, Claim::Other).unwrap();
        assert!(reserved(&memory, 1, Claim::Other).is_none());
        let active = reserved(&memory, 25, Claim::Active).unwrap();
        assert!(reserved(&memory, 1, Claim::Active).is_none());
        assert!(reserved(&memory, 5, Claim::Load).is_some());
        assert_eq!(memory.usage().refused, 2);
        drop((other, active));
        assert_eq!(memory.usage().used, 0);
    }

    #[test]
    fn the_instance_that_is_idle_for_longest_makes_room() {
        let memory = Arc::new(Memory::new(100));
        let (first, second) = (Set::new(&memory), Set::new(&memory));
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        assert!(second.keep(later, reserved(&memory, 20, Claim::Active).unwrap()));
        assert!(first.keep(start, reserved(&memory, 20, Claim::Active).unwrap()));
        let running = reserved(&memory, 70, Claim::Active).unwrap();
        assert_eq!((first.len(), second.len()), (0, 1));
        assert_eq!((memory.usage().used, memory.usage().idle), (90, 20));
        drop(running);
    }

    #[test]
    fn a_request_that_can_never_fit_drops_no_idle_instance() {
        let memory = Arc::new(Memory::new(100));
        let set = Set::new(&memory);
        assert!(set.keep(Instant::now(), reserved(&memory, 20, Claim::Other).unwrap()));
        assert!(reserved(&memory, 101, Claim::Active).is_none());
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn idle_instances_hold_half_of_the_budget_at_most_and_expire() {
        let memory = Arc::new(Memory::new(100));
        let set = Set::new(&memory);
        let start = Instant::now();
        for n in 0..10 {
            let instance = reserved(&memory, 20, Claim::Active).unwrap();
            assert!(set.keep(start + Duration::from_secs(n), instance));
            assert!(memory.usage().idle <= 50);
        }
        let too_large = reserved(&memory, 51, Claim::Active).unwrap();
        assert!(!set.keep(start, too_large));
        assert_eq!(set.len(), 2, "instances of the seconds 8 and 9");
        memory.expire_idle(start + Duration::from_secs(68), IDLE_AGE_MAX);
        assert_eq!(set.len(), 1);
        memory.expire_idle(start + Duration::from_secs(69), IDLE_AGE_MAX);
        assert_eq!((memory.usage().used, memory.usage().idle), (0, 0));
    }
}
