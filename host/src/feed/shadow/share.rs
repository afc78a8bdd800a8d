//! A limit on processor time, as a share of one core: credit grows with the wall clock and is
//! spent by work. Pure; time is passed in.

use std::time::{Duration, Instant};

/// Largest credit that can build up while the thread is idle: enough for a few rankings of a
/// slow policy.
const CREDIT_MAX: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct CpuShare {
    /// Credit in seconds. It is negative after work that used more than was left; work then
    /// pauses.
    credit_s: f64,
    at: Instant,
}

impl CpuShare {
    pub fn new(now: Instant) -> Self {
        Self {
            credit_s: 0.0,
            at: now,
        }
    }

    /// Charges `cpu` and returns the pause that keeps the average within `share`. `share` must
    /// be above 0.
    pub fn spend(&mut self, now: Instant, cpu: Duration, share: f64) -> Duration {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * share;
        self.at = now;
        self.credit_s = (self.credit_s + earned).min(CREDIT_MAX.as_secs_f64()) - cpu.as_secs_f64();
        Duration::from_secs_f64((-self.credit_s / share).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn work_that_takes_the_returned_pauses_stays_within_its_share(
            runs in proptest::collection::vec((0_u64..30_000, 0_u64..20_000), 1..200),
            percent in 1_u32..=100,
        ) {
            let share = f64::from(percent) / 100.0;
            let start = Instant::now();
            let (mut now, mut spent) = (start, Duration::ZERO);
            let mut cpu_share = CpuShare::new(now);
            for (idle_us, cpu_us) in runs {
                let cpu = Duration::from_micros(cpu_us);
                now += Duration::from_micros(idle_us) + cpu;
                spent += cpu;
                now += cpu_share.spend(now, cpu, share);
            }
            let allowed = now.duration_since(start).as_secs_f64() * share + CREDIT_MAX.as_secs_f64();
            prop_assert!(spent.as_secs_f64() <= allowed + 1e-6, "{spent:?} of {allowed}");
        }
    }

    #[test]
    fn work_does_not_pause_while_it_has_credit() {
        let start = Instant::now();
        let mut share = CpuShare::new(start);
        let later = start + Duration::from_secs(10);
        let run = Duration::from_millis(20);
        assert_eq!(share.spend(later, run, 0.25), Duration::ZERO);
        assert_eq!(share.spend(later, run, 0.25), Duration::ZERO);
        // The credit was 50 ms. The 10 ms above it cost a pause four times as long at a quarter
        // of a core.
        let pause = share.spend(later, run, 0.25);
        assert!(pause.abs_diff(Duration::from_millis(40)) < Duration::from_micros(1));
    }
}
