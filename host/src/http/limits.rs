//! Rate limits, kept in the process: per viewer on routes with a token, per address on open
//! routes.

use crate::config::{Limits, Switch};
use crate::http::problem::Problem;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;

#[derive(Debug)]
pub struct RateLimits {
    on: bool,
    viewer_requests: DefaultKeyedRateLimiter<u64>,
    viewer_event_batches: DefaultKeyedRateLimiter<u64>,
    address_requests: DefaultKeyedRateLimiter<IpAddr>,
}

impl RateLimits {
    pub fn new(limits: &Limits) -> Self {
        Self {
            on: limits.rate_limit == Switch::On,
            viewer_requests: limiter(limits.viewer_requests_per_minute),
            viewer_event_batches: limiter(limits.viewer_event_batches_per_minute),
            address_requests: limiter(limits.address_requests_per_minute),
        }
    }

    /// Counts a request of a viewer.
    ///
    /// # Errors
    /// 429 with the time to wait.
    pub fn viewer_request(&self, viewer: u64) -> Result<(), Problem> {
        self.check(&self.viewer_requests, &viewer)
    }

    /// Counts an event batch of a viewer.
    ///
    /// # Errors
    /// 429 with the time to wait.
    pub fn viewer_event_batch(&self, viewer: u64) -> Result<(), Problem> {
        self.check(&self.viewer_event_batches, &viewer)
    }

    /// Counts a request from an address.
    ///
    /// # Errors
    /// 429 with the time to wait.
    pub fn address_request(&self, address: IpAddr) -> Result<(), Problem> {
        self.check(&self.address_requests, &address)
    }

    fn check<K: Hash + Eq + Clone>(
        &self,
        limiter: &DefaultKeyedRateLimiter<K>,
        key: &K,
    ) -> Result<(), Problem> {
        if !self.on {
            return Ok(());
        }
        limiter.check_key(key).map_err(|until| {
            let wait = until.wait_time_from(DefaultClock::default().now());
            Problem::rate_limited(wait.as_secs() + 1)
        })
    }

    /// Removes keys that have their full allowance again. Without this, memory grows with every
    /// viewer ever seen.
    pub fn retain_recent(&self) {
        self.viewer_requests.retain_recent();
        self.viewer_event_batches.retain_recent();
        self.address_requests.retain_recent();
    }
}

fn limiter<K: Hash + Eq + Clone>(per_minute: u32) -> DefaultKeyedRateLimiter<K> {
    RateLimiter::keyed(Quota::per_minute(
        NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN),
    ))
}
