//! Tests of seen posts: both implementations pass the conformance tests, and the script builds
//! the filter that the host reads.

use super::Trial;
use crate::conformance::Ids;
use crate::conformance::seen::keeps_its_promises;
use crate::embedded::EmbeddedStore;
use crate::embedded::seen::ProcessSeen;
use crate::ports::SeenPosts;
use crate::redis::bloom::tests::mark;
use crate::redis::keys;
use crate::redis::seen::RedisSeen;
use crate::spool::Spool;
use nova_model::time::HOUR_MS;
use nova_support::clock::unix_ms;
use redis::AsyncCommands as _;

#[tokio::test]
async fn redis_passes_the_seen_posts_conformance_tests() {
    let Some(trial) = Trial::begin().await else {
        return;
    };
    keeps_its_promises(&RedisSeen::new(trial.redis.clone()), trial.ids).await;
    trial.end().await;
}

#[tokio::test]
async fn the_process_set_passes_the_seen_posts_conformance_tests() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).await.unwrap();
    let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
    keeps_its_promises(&ProcessSeen::new(spool, store), Ids::fresh()).await;
}

/// The property test of the filter uses the host's own model of the script, so the two must agree.
#[tokio::test]
async fn the_script_sets_the_same_bits_as_the_model() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let seen = RedisSeen::new(trial.redis.clone());
    let viewer = trial.ids.viewer(0);
    let accepted_ms = unix_ms();
    let key = keys::seen(viewer, accepted_ms / (3 * HOUR_MS));
    let mut model = Vec::new();
    let mut next = 1_u64;
    for batch in [1, 30, 100, 7, 100, 100, 1].into_iter().cycle().take(60) {
        let posts: Vec<u64> = (next..next + batch).map(|n| n * n).collect();
        // Batches overlap by half, because a post that is already known must set no bit in a
        // later layer.
        next += batch / 2 + 1;
        seen.mark(viewer, &posts, accepted_ms).await.unwrap();
        mark(&mut model, &posts);
        let stored: Vec<u8> = trial.raw.get(&key).await.unwrap();
        assert!(stored == model, "after {} posts", next);
    }
    assert!(model.len() > 516 + 4_096, "all layers are in use");
    trial.end().await;
}

#[tokio::test]
async fn an_unreadable_filter_counts_as_empty_and_is_overwritten() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let seen = RedisSeen::new(trial.redis.clone());
    let (viewer, now_ms) = (trial.ids.viewer(0), unix_ms());
    let key = keys::seen(viewer, now_ms / (3 * HOUR_MS));
    let () = trial.raw.set(&key, vec![0xff_u8; 600]).await.unwrap();
    let found = seen.among(viewer, &[1], now_ms).await.unwrap();
    assert_eq!(found.seen, [false]);
    seen.mark(viewer, &[1], now_ms).await.unwrap();
    let found = seen.among(viewer, &[1, 2], now_ms).await.unwrap();
    assert_eq!(found.seen, [true, false]);

    let () = trial.raw.unlink(&key).await.unwrap();
    let () = trial.raw.lpush(&key, "poison").await.unwrap();
    let version = keys::seen_version(viewer);
    let () = trial.raw.set(&version, "no number").await.unwrap();
    let found = seen.among(viewer, &[1], now_ms).await.unwrap();
    assert_eq!((found.version, found.seen), (1, vec![false]));
    seen.mark(viewer, &[1], now_ms).await.unwrap();
    let found = seen.among(viewer, &[1], now_ms).await.unwrap();
    assert_eq!(found.seen, [true]);
    trial.end().await;
}

#[tokio::test]
async fn a_filter_outlives_every_day_that_may_read_it() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let seen = RedisSeen::new(trial.redis.clone());
    let (viewer, now_ms) = (trial.ids.viewer(0), unix_ms());
    seen.mark(viewer, &[1], now_ms).await.unwrap();
    let key = keys::seen(viewer, now_ms / (3 * HOUR_MS));
    let filter_s: i64 = trial.raw.ttl(key).await.unwrap();
    assert!((24 * 3_600 - 60..=27 * 3_600).contains(&filter_s));
    let version_s: i64 = trial.raw.ttl(keys::seen_version(viewer)).await.unwrap();
    assert!(version_s > filter_s, "{version_s} {filter_s}");
    trial.end().await;
}
