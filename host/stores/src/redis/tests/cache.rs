//! Tests of the feed cache and of the small values.

use super::Trial;
use crate::conformance::cache::{candidates, digest, keeps_its_promises, snapshot};
use crate::embedded::cache::ProcessCache;
use crate::ports::{FeedCache, ValueCache};
use crate::redis::cache::{RedisCache, keep_alive};
use crate::redis::values::RedisValues;
use crate::redis::{Redis, keys};
use nova_model::snapshot::Algo;
use nova_support::metrics::METRICS;
use redis::AsyncCommands as _;
use std::time::Duration;

const LIFE: Duration = Duration::from_secs(120);

fn host(redis: &Redis) -> RedisCache {
    RedisCache::new(redis.clone(), 64 << 20)
}

/// A host without its own memory, so that each answer comes from Redis.
fn forgetful(redis: &Redis) -> RedisCache {
    RedisCache::new(redis.clone(), 0)
}

#[tokio::test]
async fn redis_passes_the_feed_cache_conformance_tests() {
    let Some(trial) = Trial::begin().await else {
        return;
    };
    keeps_its_promises(&host(&trial.redis), trial.ids).await;
    trial.end().await;
}

#[tokio::test]
async fn redis_passes_the_feed_cache_conformance_tests_without_the_hosts_memory() {
    let Some(trial) = Trial::begin().await else {
        return;
    };
    keeps_its_promises(&forgetful(&trial.redis), trial.ids).await;
    trial.end().await;
}

#[tokio::test]
async fn the_process_cache_passes_the_feed_cache_conformance_tests() {
    let ids = crate::conformance::Ids::fresh();
    keeps_its_promises(&ProcessCache::new(64 << 20), ids).await;
}

#[tokio::test]
async fn a_snapshot_stored_by_one_host_is_found_by_another() {
    let Some(trial) = Trial::begin().await else {
        return;
    };
    let (one, other) = (host(&trial.redis), host(&trial.redis));
    let (viewer, ranking) = (trial.ids.viewer(0), trial.ids.ranking(0));
    let put = snapshot(viewer, ranking, Algo::Ranked, "a");
    one.put_snapshot(put.clone(), Some(0)).await.unwrap();
    let found = other.latest_snapshot(viewer, digest("a")).await.unwrap();
    assert_eq!(found.unwrap().posts, put.posts);
    other.invalidate(viewer).await.unwrap();
    let found = one.latest_snapshot(viewer, digest("a")).await.unwrap();
    assert!(found.is_none());
    trial.end().await;
}

#[tokio::test]
async fn every_key_of_the_feed_cache_expires() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let cache = host(&trial.redis);
    let viewer = trial.ids.viewer(0);
    cache.invalidate(viewer).await.unwrap();
    let epoch = cache.epoch(viewer).await.unwrap();
    let put = snapshot(viewer, trial.ids.ranking(0), Algo::Ranked, "a");
    cache.put_snapshot(put, Some(epoch)).await.unwrap();
    cache
        .put_candidates(viewer, epoch, candidates(3), LIFE)
        .await
        .unwrap();
    let keys = trial.keys().await;
    assert_eq!(keys.len(), 5, "{keys:?}");
    for key in keys {
        let left_s: i64 = trial.raw.ttl(&key).await.unwrap();
        assert!(left_s > 0, "{key}: {left_s}");
    }
    let left_s: i64 = trial.raw.ttl(keys::candidates(viewer)).await.unwrap();
    assert!(left_s <= LIFE.as_secs() as i64, "{left_s}");
    let snapshot_key = keys::snapshot(trial.ids.ranking(0));
    let left_s: i64 = trial.raw.ttl(snapshot_key).await.unwrap();
    assert!(left_s >= 600, "ten minutes from its last use: {left_s}");
    trial.end().await;
}

#[tokio::test]
async fn candidates_older_than_their_ttl_are_not_stored() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let cache = host(&trial.redis);
    let viewer = trial.ids.viewer(0);
    let mut old = candidates(3);
    let made = std::time::Instant::now().checked_sub(LIFE).unwrap();
    std::sync::Arc::get_mut(&mut old).unwrap().fetched = made;
    cache.put_candidates(viewer, 0, old, LIFE).await.unwrap();
    assert_eq!(trial.keys().await, Vec::<String>::new());
    trial.end().await;
}

#[tokio::test]
async fn reading_a_snapshot_extends_its_lifetime() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let ranking = trial.ids.ranking(0);
    let put = snapshot(trial.ids.viewer(0), ranking, Algo::Ranked, "a");
    host(&trial.redis).put_snapshot(put, None).await.unwrap();
    let key = keys::snapshot(ranking);
    let () = trial.raw.expire(&key, 30).await.unwrap();
    let found = host(&trial.redis).snapshot(ranking).await.unwrap();
    assert!(found.is_some());
    let left_s: i64 = trial.raw.ttl(&key).await.unwrap();
    assert!(left_s >= 600, "{left_s}");
    trial.end().await;
}

#[tokio::test]
async fn a_used_snapshot_that_redis_lost_is_written_again() {
    let Some(trial) = Trial::begin().await else {
        return;
    };
    let ranking = trial.ids.ranking(0);
    let known = snapshot(trial.ids.viewer(0), ranking, Algo::Ranked, "a");
    keep_alive(trial.redis.clone(), known).await;
    let found = host(&trial.redis).snapshot(ranking).await.unwrap();
    assert!(found.is_some());
    trial.end().await;
}

#[tokio::test]
async fn an_undecodable_value_is_a_miss_and_is_counted() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let viewer = trial.ids.viewer(0);
    let undecodable = |cache| {
        let operations = &METRICS.cache_operations_total;
        operations.with_label_values(&[cache, "undecodable"]).get()
    };
    for poison in [&b""[..], b"\x01", b"\x02of another format", b"\xff\xfe\xfd"] {
        let ranking = trial.ids.ranking(0);
        let id = ranking.as_bytes();
        let () = trial
            .raw
            .set(keys::snapshot(ranking), poison)
            .await
            .unwrap();
        let () = trial.raw.set(keys::newest(viewer), id).await.unwrap();
        let () = trial
            .raw
            .set(keys::candidates(viewer), poison)
            .await
            .unwrap();
        let () = trial.raw.set(keys::epoch(viewer), poison).await.unwrap();
        let cache = host(&trial.redis);
        let before = (undecodable("snapshot"), undecodable("candidates"));
        assert!(cache.snapshot(ranking).await.unwrap().is_none());
        assert!(cache.newest_snapshot(viewer).await.unwrap().is_none());
        let found = cache.candidates(viewer).await.unwrap();
        assert_eq!((found.epoch, found.candidates.is_none()), (0, true));
        let after = (undecodable("snapshot"), undecodable("candidates"));
        assert!(after.0 >= before.0 + 2 && after.1 > before.1, "{poison:?}");
    }
    trial.end().await;
}

#[tokio::test]
async fn a_key_of_another_type_is_a_miss_and_is_overwritten() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let (viewer, ranking) = (trial.ids.viewer(0), trial.ids.ranking(0));
    for key in [
        keys::snapshot(ranking),
        keys::newest(viewer),
        keys::latest(viewer),
        keys::candidates(viewer),
        keys::epoch(viewer),
    ] {
        let () = trial.raw.lpush(key, "poison").await.unwrap();
    }
    let cache = host(&trial.redis);
    assert!(cache.snapshot(ranking).await.unwrap().is_none());
    assert!(cache.newest_snapshot(viewer).await.unwrap().is_none());
    let latest = cache.latest_snapshot(viewer, digest("a")).await.unwrap();
    assert!(latest.is_none());
    assert!(cache.candidates(viewer).await.unwrap().candidates.is_none());
    cache.invalidate(viewer).await.unwrap();
    let epoch = cache.epoch(viewer).await.unwrap();
    let put = snapshot(viewer, ranking, Algo::Ranked, "a");
    cache.put_snapshot(put, Some(epoch)).await.unwrap();
    let latest = cache.latest_snapshot(viewer, digest("a")).await.unwrap();
    assert!(latest.is_some());
    cache
        .put_candidates(viewer, epoch, candidates(3), LIFE)
        .await
        .unwrap();
    assert!(cache.candidates(viewer).await.unwrap().candidates.is_some());
    trial.end().await;
}

#[tokio::test]
async fn a_value_is_kept_for_its_ttl_and_removed_at_once() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let values = RedisValues::new(trial.redis.clone());
    let key = format!("hot:posts:{}", trial.ids.viewer(0));
    assert_eq!(values.get(&key).await.unwrap(), None);
    values.put(&key, vec![0, 255], LIFE).await.unwrap();
    assert_eq!(values.get(&key).await.unwrap(), Some(vec![0, 255]));
    let left_s: i64 = trial.raw.ttl(&key).await.unwrap();
    assert!((1..=120).contains(&left_s), "{left_s}");
    values.remove(&key).await.unwrap();
    assert_eq!(values.get(&key).await.unwrap(), None);
    values.put(&key, vec![1], LIFE).await.unwrap();
    values.put(&key, vec![2], Duration::ZERO).await.unwrap();
    assert_eq!(values.get(&key).await.unwrap(), None);
    trial.end().await;
}
