//! Claims on accepted events, shared by all hosts, so that `deduped` in a response also counts an
//! event that was sent to another host before. Claims only make `deduped` more accurate: the event
//! is already durable in the spool, claimed or not, and the consumer decides what is a duplicate.
//!
//! There is one set for each viewer and hour of event time, with two short names for each
//! event. Redis packs small sets of numbers into 8 bytes per member; one key per event would
//! take 100. An event id that is repeated with a time in another hour is not found here. If the
//! connection breaks during a call, the call is sent again and may then find its own claims, so
//! `deduped` is occasionally too high.

use super::{Redis, keys};
use crate::ports::StoreResult;
use nova_model::event::AcceptedEvent;
use nova_model::event::{event_id_key, idempotency_key};
use nova_model::time::HOUR_MS;
use nova_support::metrics::METRICS;
use prometheus::Histogram;
use redis::{Pipeline, cmd, pipe};
use std::collections::BTreeMap;

/// Lifetime of claims in ms. An event may be sent until it is 24 hours old, and the clock of its
/// sender may be wrong.
const LIFE_MS: u64 = 25 * HOUR_MS;

#[derive(Debug, Clone)]
pub struct RedisClaims {
    redis: Redis,
    duration_seconds: Histogram,
}

impl RedisClaims {
    pub fn new(redis: Redis) -> Self {
        let durations = &METRICS.cache_duration_seconds;
        Self {
            redis,
            duration_seconds: durations.with_label_values(&["claims"]),
        }
    }

    /// Claims those events of a viewer's batch whose positions are in `new`, ascending. Returns
    /// the positions of the events that were already claimed, ascending.
    ///
    /// # Errors
    /// Fails if Redis does not answer; it is then unknown which events were claimed.
    pub async fn claim(
        &self,
        viewer: u64,
        batch: &[AcceptedEvent],
        new: &[usize],
    ) -> StoreResult<Vec<usize>> {
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let _timer = self.duration_seconds.start_timer();
        let hours = by_hour(batch, new);
        let mut pipeline = pipe();
        for (hour, places) in &hours {
            claim_hour(&mut pipeline, viewer, *hour, &names(batch, places));
        }
        let claimed: Vec<Vec<bool>> = self.redis.call("claim_events", pipeline).await?;
        let mut known = Vec::new();
        for (places, claimed) in hours.values().zip(claimed) {
            for (place, claimed) in places.iter().zip(claimed.chunks(NAMES)) {
                if claimed.contains(&true) {
                    known.push(*place);
                }
            }
        }
        known.sort_unstable();
        Ok(known)
    }
}

/// Groups positions in the batch by hour of event time.
fn by_hour(batch: &[AcceptedEvent], places: &[usize]) -> BTreeMap<u64, Vec<usize>> {
    let mut hours = BTreeMap::<u64, Vec<usize>>::new();
    for place in places {
        let hour = batch[*place].event_time_ms / HOUR_MS;
        hours.entry(hour).or_default().push(*place);
    }
    hours
}

const NAMES: usize = 2;

/// The names of each event: its idempotency key and its event id, truncated to enough bits to
/// distinguish the events of one viewer and hour.
pub(super) fn names(batch: &[AcceptedEvent], places: &[usize]) -> Vec<i64> {
    let keys = places.iter().flat_map(|place| {
        let event = &batch[*place];
        [idempotency_key(event), event_id_key(event)]
    });
    keys.map(|key| u128::from_be_bytes(key) as i64).collect()
}

fn claim_hour(pipeline: &mut Pipeline, viewer: u64, hour: u64, names: &[i64]) {
    let key = keys::claims(viewer, hour);
    pipeline.add_command(cmd("SMISMEMBER").arg(&key).arg(names).to_owned());
    pipeline.sadd(&key, names).ignore();
    let until_ms = (hour + 1) * HOUR_MS + LIFE_MS;
    pipeline.pexpire_at(&key, until_ms as i64).ignore();
}
