//! Conformance tests of the stores of seen posts.

use super::Ids;
use crate::ports::SeenPosts;
use nova_model::time::{DAY_MS, HOUR_MS};
use nova_support::clock::unix_ms;

/// Time that a post may stay seen beyond its 24 hours.
const SLACK_MS: u64 = 3 * HOUR_MS;

pub async fn keeps_its_promises(seen: &dyn SeenPosts, ids: Ids) {
    a_stranger_has_seen_nothing(seen, ids.viewer(0)).await;
    a_marked_post_is_seen_for_a_day(seen, ids.viewer(1)).await;
    the_version_changes_when_a_post_joins(seen, ids.viewer(2)).await;
    viewers_are_apart(seen, ids.viewer(3), ids.viewer(4)).await;
    a_large_batch_is_marked_whole(seen, ids.viewer(5)).await;
}

async fn a_stranger_has_seen_nothing(seen: &dyn SeenPosts, viewer: u64) {
    let now_ms = unix_ms();
    let found = seen.among(viewer, &[1, 2], now_ms).await.unwrap();
    assert_eq!(found.seen, [false, false]);
    assert_ne!(
        found.version, 0,
        "0 is the version of a set that cannot be read"
    );
    assert_eq!(seen.count(viewer, now_ms).await.unwrap(), 0);
    let nothing = seen.among(viewer, &[], now_ms).await.unwrap();
    assert!(nothing.seen.is_empty());
}

async fn a_marked_post_is_seen_for_a_day(seen: &dyn SeenPosts, viewer: u64) {
    let now_ms = unix_ms();
    seen.mark(viewer, &[10, 20], now_ms).await.unwrap();
    for at_ms in [now_ms, now_ms + 12 * HOUR_MS, now_ms + DAY_MS - 1] {
        let found = seen.among(viewer, &[10, 30, 20], at_ms).await.unwrap();
        assert_eq!(
            found.seen,
            [true, false, true],
            "after {} ms",
            at_ms - now_ms
        );
    }
    assert_eq!(seen.count(viewer, now_ms).await.unwrap(), 2);
    let gone_ms = now_ms + DAY_MS + SLACK_MS;
    let found = seen.among(viewer, &[10, 20], gone_ms).await.unwrap();
    assert_eq!(found.seen, [false, false]);
    assert_eq!(seen.count(viewer, gone_ms).await.unwrap(), 0);
}

async fn the_version_changes_when_a_post_joins(seen: &dyn SeenPosts, viewer: u64) {
    let now_ms = unix_ms();
    let mut versions = vec![seen.version(viewer).await.unwrap()];
    for posts in [&[1][..], &[2, 3], &[3, 4]] {
        seen.mark(viewer, posts, now_ms).await.unwrap();
        let version = seen.version(viewer).await.unwrap();
        assert!(!versions.contains(&version), "{version} in {versions:?}");
        versions.push(version);
    }
    seen.mark(viewer, &[1, 2, 3, 4], now_ms).await.unwrap();
    let version = seen.version(viewer).await.unwrap();
    assert_eq!(version, *versions.last().unwrap(), "no post is new");
    let found = seen.among(viewer, &[4], now_ms).await.unwrap();
    assert_eq!(found.version, version);
}

async fn viewers_are_apart(seen: &dyn SeenPosts, one: u64, other: u64) {
    let now_ms = unix_ms();
    let before = seen.version(other).await.unwrap();
    seen.mark(one, &[7], now_ms).await.unwrap();
    assert_eq!(seen.version(other).await.unwrap(), before);
    let found = seen.among(other, &[7], now_ms).await.unwrap();
    assert_eq!(found.seen, [false]);
}

async fn a_large_batch_is_marked_whole(seen: &dyn SeenPosts, viewer: u64) {
    let now_ms = unix_ms();
    let posts: Vec<u64> = (1..=1_500).collect();
    seen.mark(viewer, &posts, now_ms).await.unwrap();
    let found = seen.among(viewer, &posts, now_ms).await.unwrap();
    assert!(found.seen.iter().all(|seen| *seen));
    let count = seen.count(viewer, now_ms).await.unwrap();
    assert!((1_400..=1_600).contains(&count), "{count}");
}
