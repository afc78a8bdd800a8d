//! Conformance tests of the feed caches.

use super::Ids;
use crate::ports::FeedCache;
use nova_model::artifact::Digest;
use nova_model::features::{CandidateSet, Sources};
use nova_model::post::Counters;
use nova_model::snapshot::{
    Algo, CachedCandidates, ServedBy, ServedPolicy, Snapshot, SnapshotPost,
};
use nova_support::clock::unix_ms;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use uuid::Uuid;

const LIFE: Duration = Duration::from_secs(60);

pub fn digest(name: &str) -> Digest {
    Digest::from_content(name.as_bytes())
}

pub fn snapshot(viewer: u64, ranking_id: Uuid, algo: Algo, policy: &str) -> Arc<Snapshot> {
    let post = |post_id| SnapshotPost {
        post_id,
        author_id: post_id + 1_000,
        created_at_ms: 1_750_000_000_000 + post_id,
        counters: Counters {
            likes: post_id * 3,
            ..Counters::default()
        },
        score: Some(post_id as f32 / 7.0),
        sources: Sources::FOLLOWEES,
    };
    let effective_digest = digest(policy);
    Arc::new(Snapshot {
        ranking_id,
        viewer,
        algo,
        served_by: ServedBy::Policy,
        fallback: false,
        degraded: Vec::new(),
        policy: ServedPolicy {
            name: policy.into(),
            version: "1.0.0".into(),
            effective_digest,
            digest_hex: effective_digest.to_string().into(),
        },
        assignment: None,
        created: Instant::now(),
        created_at_ms: unix_ms(),
        seen_version: 5,
        posts: (1..=200).map(post).collect(),
        first_page: OnceLock::new(),
        whole_in: AtomicU64::new(0),
    })
}

pub fn candidates(rows: u64) -> Arc<CachedCandidates> {
    let set = CandidateSet {
        post_ids: (1..=rows).collect(),
        author_ids: (1..=rows).map(|row| row * 2).collect(),
        created_at_ms: (1..=rows).collect(),
        sources: (1..=rows).map(|_| Sources::TRENDING).collect(),
        counters: (1..=rows).map(|_| Counters::default()).collect(),
        affinity: (1..=rows).map(|row| row % 4).collect(),
        author_recent_impressions: (1..=rows).map(|_| 0).collect(),
    };
    Arc::new(CachedCandidates {
        set: Arc::new(set),
        fetched: Instant::now(),
    })
}

pub async fn keeps_its_promises(cache: &dyn FeedCache, ids: Ids) {
    nothing_is_known_of_a_stranger(cache, ids.viewer(0), ids.ranking(0)).await;
    a_snapshot_is_latest_and_newest(cache, ids.viewer(1), ids.ranking(1)).await;
    each_digest_has_its_own_latest(cache, ids.viewer(2), ids).await;
    a_snapshot_without_an_epoch_is_for_cursors_only(cache, ids.viewer(3), ids.ranking(4)).await;
    a_past_epoch_makes_nothing_latest(cache, ids.viewer(4), ids.ranking(5)).await;
    a_timeline_is_latest_and_never_newest(cache, ids.viewer(5), ids).await;
    candidates_are_kept_in_their_epoch(cache, ids.viewer(6)).await;
    candidates_of_a_past_epoch_are_not_kept(cache, ids.viewer(7)).await;
    invalidating_leaves_snapshots_to_their_cursors(cache, ids.viewer(8), ids.ranking(8)).await;
    many_digests_leave_the_last_one_latest(cache, ids.viewer(9), ids).await;
    assert!(cache.ping().await.is_ok());
}

async fn ranking_of(cache: &dyn FeedCache, viewer: u64, policy: &str) -> Option<Uuid> {
    let latest = cache.latest_snapshot(viewer, digest(policy)).await.unwrap();
    latest.map(|snapshot| snapshot.ranking_id)
}

async fn newest_of(cache: &dyn FeedCache, viewer: u64) -> Option<Uuid> {
    let newest = cache.newest_snapshot(viewer).await.unwrap();
    newest.map(|snapshot| snapshot.ranking_id)
}

async fn nothing_is_known_of_a_stranger(cache: &dyn FeedCache, viewer: u64, ranking: Uuid) {
    assert!(cache.snapshot(ranking).await.unwrap().is_none());
    assert_eq!(ranking_of(cache, viewer, "a").await, None);
    assert_eq!(newest_of(cache, viewer).await, None);
    assert!(cache.candidates(viewer).await.unwrap().candidates.is_none());
    assert!(cache.invalidate(viewer).await.is_ok());
}

async fn a_snapshot_is_latest_and_newest(cache: &dyn FeedCache, viewer: u64, ranking: Uuid) {
    let epoch = cache.epoch(viewer).await.unwrap();
    let put = snapshot(viewer, ranking, Algo::Ranked, "a");
    cache.put_snapshot(put.clone(), Some(epoch)).await.unwrap();
    let found = cache.snapshot(ranking).await.unwrap().unwrap();
    assert_eq!(found.posts, put.posts);
    assert_eq!(found.policy, put.policy);
    assert_eq!(found.seen_version, put.seen_version);
    assert_eq!(ranking_of(cache, viewer, "a").await, Some(ranking));
    assert_eq!(newest_of(cache, viewer).await, Some(ranking));
}

async fn each_digest_has_its_own_latest(cache: &dyn FeedCache, viewer: u64, ids: Ids) {
    let epoch = cache.epoch(viewer).await.unwrap();
    for (policy, ranking) in [("a", ids.ranking(2)), ("b", ids.ranking(3))] {
        let put = snapshot(viewer, ranking, Algo::Ranked, policy);
        cache.put_snapshot(put, Some(epoch)).await.unwrap();
    }
    assert_eq!(ranking_of(cache, viewer, "a").await, Some(ids.ranking(2)));
    assert_eq!(ranking_of(cache, viewer, "b").await, Some(ids.ranking(3)));
    assert_eq!(ranking_of(cache, viewer, "c").await, None);
    assert_eq!(newest_of(cache, viewer).await, Some(ids.ranking(3)));
}

async fn a_snapshot_without_an_epoch_is_for_cursors_only(
    cache: &dyn FeedCache,
    viewer: u64,
    ranking: Uuid,
) {
    let put = snapshot(viewer, ranking, Algo::Ranked, "a");
    cache.put_snapshot(put, None).await.unwrap();
    assert_eq!(ranking_of(cache, viewer, "a").await, None);
    assert!(cache.snapshot(ranking).await.unwrap().is_some());
    assert_eq!(newest_of(cache, viewer).await, Some(ranking));
}

async fn a_past_epoch_makes_nothing_latest(cache: &dyn FeedCache, viewer: u64, ranking: Uuid) {
    let epoch = cache.epoch(viewer).await.unwrap();
    cache.invalidate(viewer).await.unwrap();
    assert_ne!(cache.epoch(viewer).await.unwrap(), epoch);
    let put = snapshot(viewer, ranking, Algo::Ranked, "a");
    cache.put_snapshot(put, Some(epoch)).await.unwrap();
    assert_eq!(ranking_of(cache, viewer, "a").await, None);
    assert!(cache.snapshot(ranking).await.unwrap().is_some());
}

async fn a_timeline_is_latest_and_never_newest(cache: &dyn FeedCache, viewer: u64, ids: Ids) {
    let epoch = cache.epoch(viewer).await.unwrap();
    let ranked = snapshot(viewer, ids.ranking(6), Algo::Ranked, "a");
    cache.put_snapshot(ranked, Some(epoch)).await.unwrap();
    let timeline = snapshot(viewer, ids.ranking(7), Algo::Timeline, "timeline");
    cache.put_snapshot(timeline, Some(epoch)).await.unwrap();
    let latest = ranking_of(cache, viewer, "timeline").await;
    assert_eq!(latest, Some(ids.ranking(7)));
    assert_eq!(newest_of(cache, viewer).await, Some(ids.ranking(6)));
}

async fn candidates_are_kept_in_their_epoch(cache: &dyn FeedCache, viewer: u64) {
    let epoch = cache.candidates(viewer).await.unwrap().epoch;
    assert_eq!(cache.epoch(viewer).await.unwrap(), epoch);
    let put = candidates(300);
    cache
        .put_candidates(viewer, epoch, put.clone(), LIFE)
        .await
        .unwrap();
    let found = cache.candidates(viewer).await.unwrap();
    assert_eq!(found.epoch, epoch);
    assert_eq!(found.candidates.unwrap().set, put.set);
}

async fn candidates_of_a_past_epoch_are_not_kept(cache: &dyn FeedCache, viewer: u64) {
    let before = cache.epoch(viewer).await.unwrap();
    cache
        .put_candidates(viewer, before, candidates(3), LIFE)
        .await
        .unwrap();
    cache.invalidate(viewer).await.unwrap();
    let after = cache.candidates(viewer).await.unwrap();
    assert!(after.candidates.is_none());
    assert_ne!(after.epoch, before);
    cache
        .put_candidates(viewer, before, candidates(3), LIFE)
        .await
        .unwrap();
    assert!(cache.candidates(viewer).await.unwrap().candidates.is_none());
    cache
        .put_candidates(viewer, after.epoch, candidates(3), LIFE)
        .await
        .unwrap();
    assert!(cache.candidates(viewer).await.unwrap().candidates.is_some());
}

async fn invalidating_leaves_snapshots_to_their_cursors(
    cache: &dyn FeedCache,
    viewer: u64,
    ranking: Uuid,
) {
    let epoch = cache.epoch(viewer).await.unwrap();
    let put = snapshot(viewer, ranking, Algo::Ranked, "a");
    cache.put_snapshot(put, Some(epoch)).await.unwrap();
    cache.invalidate(viewer).await.unwrap();
    assert_eq!(ranking_of(cache, viewer, "a").await, None);
    assert!(cache.snapshot(ranking).await.unwrap().is_some());
    assert_eq!(newest_of(cache, viewer).await, Some(ranking));
}

async fn many_digests_leave_the_last_one_latest(cache: &dyn FeedCache, viewer: u64, ids: Ids) {
    let epoch = cache.epoch(viewer).await.unwrap();
    for n in 0..12 {
        let (policy, ranking) = (format!("policy-{n}"), ids.ranking(20 + n));
        let put = snapshot(viewer, ranking, Algo::Ranked, &policy);
        cache.put_snapshot(put, Some(epoch)).await.unwrap();
        assert_eq!(ranking_of(cache, viewer, &policy).await, Some(ranking));
    }
}
