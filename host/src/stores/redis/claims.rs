//! What other hosts have accepted: claims on events that all hosts share, so that `deduped` in an answer knows of an
//! event that was sent to another host before. A courtesy: the event is durable in the spool by then, claimed or not,
//! and the consumer is the judge.
//!
//! A set for each viewer and hour of event time, with two short names for each event. Redis packs small sets of numbers
//! into 8 bytes a member, where a key for each would take 100. An event id that comes again with a time of another hour is not found here.
//! A call whose connection breaks is sent again and may then know its own events: once in a while `deduped` is too high.

use super::{Redis, keys};
use crate::events::event::{event_id_key, idempotency_key};
use crate::metrics::METRICS;
use crate::stores::{AcceptedEvent, HOUR_MS, StoreResult};
use prometheus::Histogram;
use redis::{Pipeline, cmd, pipe};
use std::collections::BTreeMap;

/// An event may be sent until it is 24 hours old, and its sender's clock may be wrong.
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

    /// Claims those events of a viewer's batch that `new` names by their places, ascending; answers which of them
    /// somebody else had claimed, ascending.
    ///
    /// # Errors
    /// Redis does not answer: then nobody knows.
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
        let claimed: Vec<Vec<bool>> = self.redis.ask("claim_events", pipeline).await?;
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

/// Places in the batch by hour of event time.
fn by_hour(batch: &[AcceptedEvent], places: &[usize]) -> BTreeMap<u64, Vec<usize>> {
    let mut hours = BTreeMap::<u64, Vec<usize>>::new();
    for place in places {
        let hour = batch[*place].event_time_ms / HOUR_MS;
        hours.entry(hour).or_default().push(*place);
    }
    hours
}

const NAMES: usize = 2;

/// What identifies each event: its idempotency key and its id, shortened to what tells one hour of one viewer apart.
fn names(batch: &[AcceptedEvent], places: &[usize]) -> Vec<i64> {
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
