//! Conformance tests of the candidate stores: a random community is loaded through each set's
//! usual write path, and the results are compared with a model that computes them the slow way.
//! See docs/semantics.md.
//!
//! The tests of each set load a [`Community`] and call [`assert_conforms`].

pub mod cache;
mod community;
mod ids;
mod model;
pub mod seen;

pub use community::{Community, Reaction};
pub use ids::Ids;
pub use model::Model;

use crate::ports::CandidateStore;
use nova_model::event::Action;
use nova_model::post::Post;
use nova_model::time::{DAY_MS, HOUR_MS};
use std::collections::BTreeMap;

const USERS: u64 = 80;
const POSTS: u64 = 600;

/// Compares every result of the store with the model.
pub async fn assert_conforms(store: &dyn CandidateStore, model: &Model) {
    for viewer in 1..=10 {
        compare_sources(store, model, viewer).await;
        compare_viewer(store, model, viewer).await;
    }
    compare_counters(store, model).await;
    compare_trending_windows(store, model).await;
}

/// Returns the limit of a viewer. Some viewers request everything and some only a few rows, so
/// that limits apply.
fn limit(viewer: u64, all: usize) -> (u32, usize) {
    let limit = if viewer.is_multiple_of(2) { all } else { 7 };
    (u32::try_from(limit).unwrap(), limit)
}

async fn compare_sources(store: &dyn CandidateStore, model: &Model, viewer: u64) {
    let (asked, expected) = limit(viewer, 500);
    let followees = store.followees(viewer, model.now_ms, asked).await.unwrap();
    assert_eq!(followees, model.followees(viewer, expected));

    let (asked, expected) = limit(viewer, 200);
    let recent = store.recent(viewer, model.now_ms, asked).await.unwrap();
    assert_eq!(recent, model.recent(viewer, expected));

    let trending = store.trending(viewer, model.now_ms, asked).await.unwrap();
    let engaged = model.trending(viewer, 24, expected).into_iter();
    assert_eq!(
        trending,
        engaged.map(|(post, _)| post).collect::<Vec<Post>>()
    );

    let (per_author, expected_per_author) = limit(viewer, 20);
    let affinity = store.affinity(viewer, model.now_ms, per_author, asked);
    assert_eq!(
        affinity.await.unwrap(),
        model.affinity_source(viewer, expected_per_author, expected)
    );
}

async fn compare_viewer(store: &dyn CandidateStore, model: &Model, viewer: u64) {
    let affinities = store.affinities(viewer, model.now_ms).await.unwrap();
    let counted = [Action::Like, Action::Comment, Action::View];
    assert_eq!(
        affinities.into_iter().collect::<BTreeMap<_, _>>(),
        model.affinities(viewer, &counted)
    );

    let (asked, expected) = limit(viewer, 20);
    let suggested = store.suggested_users(viewer, model.now_ms, asked);
    let suggested: Vec<_> = (suggested.await.unwrap().iter())
        .map(|user| (user.user_id, user.follower_count, user.affinity_score))
        .collect();
    assert_eq!(suggested, model.suggestions(viewer, expected));

    let since_ms = model.now_ms - DAY_MS;
    let (impressions, _) = model.shown_to(viewer, since_ms);
    let found = store.recent_impressions(viewer, since_ms).await.unwrap();
    assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), impressions);
}

async fn compare_counters(store: &dyn CandidateStore, model: &Model) {
    let ids: Vec<u64> = (1..=POSTS).collect();
    let counters = store.counters(&ids, model.now_ms).await.unwrap();
    let first_hour = (model.now_ms - 90 * DAY_MS) / HOUR_MS * HOUR_MS;
    for post in &model.posts {
        let expected = model.totals(post.post_id, first_hour, u64::MAX);
        let found = counters.get(&post.post_id).copied().unwrap_or_default();
        assert_eq!(found, expected, "post {}", post.post_id);
        if post.post_id.is_multiple_of(50) {
            let metrics = store
                .post_metrics(post.post_id, model.now_ms)
                .await
                .unwrap();
            assert_eq!(metrics, Some((*post, expected)));
        }
    }
    let unknown = store.post_metrics(POSTS + 1, model.now_ms).await.unwrap();
    assert_eq!(unknown, None);
}

async fn compare_trending_windows(store: &dyn CandidateStore, model: &Model) {
    let nobody = 0;
    for hours in [1, 24, 168] {
        let found = store
            .trending_window(hours, model.now_ms, 50)
            .await
            .unwrap();
        let found: Vec<_> = (found.iter())
            .map(|post| (post.post_id, post.author_id, post.counters))
            .collect();
        let expected: Vec<_> = (model.trending(nobody, hours.into(), 50).iter())
            .map(|(post, sums)| (post.post_id, post.author_id, *sums))
            .collect();
        assert_eq!(found, expected, "{hours} h");
    }
}
