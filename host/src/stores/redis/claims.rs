//! What other hosts have accepted: claims on events that all hosts share, so that `deduped` in an answer knows of an
//! event that was sent to another host before. A courtesy: the event is durable in the spool by then, claimed or not,
//! and the consumer is the judge.
//!
//! A hash for each viewer and hour of event time: two short names for each event, and who claimed it. Redis packs
//! small hashes into some 20 bytes an entry, where a key for each would take 100. An event id that comes again with a
//! time of another hour is not found here.

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
        // A pipeline may be sent twice, when its connection breaks: it must know its own claims.
        let claimant: u64 = rand::random();
        let hours = by_hour(batch, new);
        let mut pipeline = pipe();
        for (hour, places) in &hours {
            claim_hour(
                &mut pipeline,
                viewer,
                *hour,
                &names(batch, places),
                claimant,
            );
        }
        let holders: Vec<Vec<Option<u64>>> = self.redis.ask("claim_events", pipeline).await?;
        let mut known = Vec::new();
        for (places, holders) in hours.values().zip(holders) {
            for (place, holders) in places.iter().zip(holders.chunks(NAMES)) {
                if holders.iter().flatten().any(|holder| *holder != claimant) {
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
fn names(batch: &[AcceptedEvent], places: &[usize]) -> Vec<u64> {
    let keys = places.iter().flat_map(|place| {
        let event = &batch[*place];
        [idempotency_key(event), event_id_key(event)]
    });
    keys.map(|key| u128::from_be_bytes(key) as u64).collect()
}

fn claim_hour(pipeline: &mut Pipeline, viewer: u64, hour: u64, names: &[u64], claimant: u64) {
    let key = keys::claims(viewer, hour);
    for name in names {
        pipeline.hset_nx(&key, name, claimant).ignore();
    }
    let until_ms = (hour + 1) * HOUR_MS + LIFE_MS;
    pipeline.pexpire_at(&key, until_ms as i64).ignore();
    pipeline.add_command(cmd("HMGET").arg(&key).arg(names).to_owned());
}
