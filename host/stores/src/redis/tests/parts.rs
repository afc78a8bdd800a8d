//! Tests of leases, deleted posts and the scan.

use super::{Trial, with_long_timeout};
use crate::ports::Lease;
use crate::redis::keys;
use crate::redis::lease::RedisLease;
use crate::redis::scan::scan_report;
use crate::redis::tombstones::Tombstones;
use futures::StreamExt as _;
use nova_model::deleted::Tombstone;
use redis::AsyncCommands as _;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(60);

#[tokio::test]
async fn one_host_of_many_holds_a_lease_until_it_releases_it() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let (one, other) = (
        RedisLease::new(trial.redis.clone()),
        RedisLease::new(trial.redis.clone()),
    );
    let job = trial.ids.viewer(0).to_string();
    assert!(one.hold(&job, TTL).await.unwrap());
    assert!(!other.hold(&job, TTL).await.unwrap());
    assert!(one.hold(&job, TTL * 10).await.unwrap(), "renewed");
    let left_s: i64 = trial.raw.ttl(keys::lease(&job)).await.unwrap();
    assert!(left_s > TTL.as_secs() as i64, "{left_s}");
    other.release(&job).await.unwrap();
    assert!(
        !other.hold(&job, TTL).await.unwrap(),
        "a host cannot release another host's lease"
    );
    one.release(&job).await.unwrap();
    assert!(other.hold(&job, TTL).await.unwrap());
    trial.end().await;
}

#[tokio::test]
async fn only_one_of_many_concurrent_hosts_gets_the_lease() {
    let Some(trial) = Trial::begin().await else {
        return;
    };
    let job = trial.ids.viewer(0).to_string();
    let hosts: Vec<RedisLease> = (0..32)
        .map(|_| RedisLease::new(trial.redis.clone()))
        .collect();
    let held = futures::future::join_all(hosts.iter().map(|host| host.hold(&job, TTL))).await;
    assert_eq!(
        held.into_iter()
            .filter(|held| *held.as_ref().unwrap())
            .count(),
        1
    );
    trial.end().await;
}

/// Removes posts from the set of deleted posts. All tests on this Redis share the set, so each
/// test checks its own ids and ignores others.
async fn forget(trial: &mut Trial, posts: &[u64]) {
    let members: Vec<i64> = posts
        .iter()
        .flat_map(|post| [*post as i64, -(*post as i64)])
        .collect();
    let () = trial.raw.zrem(keys::DELETED, members).await.unwrap();
    let () = trial.raw.hdel(keys::DELETED_VERSIONS, posts).await.unwrap();
}

fn tombstone(post_id: u64, version: u64, deleted: bool) -> Tombstone {
    Tombstone {
        post_id,
        version,
        deleted,
    }
}

#[tokio::test]
async fn the_highest_version_of_a_post_wins_in_any_order_of_publication() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let [back, gone, new] = [3, 4, 5].map(|n| trial.ids.viewer(n));
    let tombstones = Tombstones::new(&trial.redis);
    let told = [
        tombstone(back, 10, true),
        tombstone(back, 20, false),
        // A repeated delivery.
        tombstone(back, 10, true),
        tombstone(gone, 20, true),
        tombstone(gone, 10, false),
        tombstone(new, 10, false),
    ];
    tombstones.publish(&told).await.unwrap();
    let recent = tombstones.recent(0).await.unwrap();
    let deleted = |post| {
        let mut of_post = recent.iter().filter(|published| published.post_id == post);
        of_post.next_back().map(|published| published.deleted)
    };
    assert_eq!(deleted(back), Some(false));
    assert_eq!(deleted(gone), Some(true));
    assert_eq!(deleted(new), None, "a new post is not published");
    forget(&mut trial, &[back, gone, new]).await;
    trial.end().await;
}

#[tokio::test]
async fn a_deletion_reaches_current_and_later_followers() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let [before, after] = [trial.ids.viewer(1), trial.ids.viewer(2)];
    let (here, there) = (
        Tombstones::new(&trial.redis),
        Tombstones::new(&with_long_timeout(&std::env::var("REDIS_URL").unwrap())),
    );
    here.publish(&[tombstone(before, 1, true)]).await.unwrap();
    let mut followed = Box::pin(there.follow());
    let mut published = Vec::new();
    while !published.contains(&before) {
        published.extend(
            followed
                .next()
                .await
                .unwrap()
                .into_iter()
                .map(|published| published.post_id),
        );
    }
    here.publish(&[tombstone(after, 1, true)]).await.unwrap();
    while !published.contains(&after) {
        published.extend(
            followed
                .next()
                .await
                .unwrap()
                .into_iter()
                .map(|published| published.post_id),
        );
    }
    let times_told = published.iter().filter(|post| **post == before).count();
    assert_eq!(times_told, 1, "a known deletion is not repeated");
    let recent = there.recent(0).await.unwrap();
    let at_ms = |post| {
        recent
            .iter()
            .find(|published| published.post_id == post)
            .unwrap()
            .at_ms
    };
    assert!(at_ms(before) <= at_ms(after));
    let later = there.recent(at_ms(after) + 1).await.unwrap();
    assert!(!later.iter().any(|published| published.post_id == after));
    forget(&mut trial, &[before, after]).await;
    trial.end().await;
}

#[tokio::test]
async fn the_scan_counts_and_measures_keys_and_finds_those_that_never_expire() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let viewers: Vec<u64> = (0..40).map(|n| trial.ids.viewer(n)).collect();
    for viewer in &viewers {
        let key = keys::candidates(*viewer);
        let () = trial.raw.set_ex(key, vec![0_u8; 5_000], 60).await.unwrap();
    }
    let for_ever = keys::newest(viewers[0]);
    let () = trial.raw.set(&for_ever, "x").await.unwrap();
    let report = scan_report(&trial.redis, 1_000_000).await.unwrap();
    assert!(report.complete);
    let feeds = &report.prefixes["feed:v1:"];
    assert!(feeds.keys >= 40, "{feeds:?}");
    assert!(feeds.bytes_estimate > 10_000, "{feeds:?}");
    assert!(report.prefixes["newest:v1:"].without_ttl >= 1);
    let bounded = scan_report(&trial.redis, 1).await.unwrap();
    assert!(bounded.keys >= 1 && bounded.keys <= report.keys);
    trial.end().await;
}
