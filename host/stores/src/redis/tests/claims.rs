//! Tests of claims on events: each event has one holder, regardless of who claims it and how often.

use super::Trial;
use crate::redis::claims::RedisClaims;
use crate::redis::keys;
use nova_model::event::{AcceptedEvent, Action};
use nova_model::time::HOUR_MS;
use nova_support::clock::unix_ms;
use redis::AsyncCommands as _;
use uuid::Uuid;

fn event(viewer: u64, post: u64, event_time_ms: u64) -> AcceptedEvent {
    AcceptedEvent {
        event_id: Uuid::new_v4(),
        event_time_ms,
        accepted_ms: event_time_ms,
        user_id: viewer,
        post_id: post,
        author_id: 1,
        action: Action::Like,
        dwell_ms: None,
        device: String::new(),
        app_ver: String::new(),
        ranking_id: None,
    }
}

#[tokio::test]
async fn an_event_that_was_claimed_is_recognised_by_its_content_and_by_its_id() {
    let Some(trial) = Trial::begin().await else {
        return;
    };
    let (one, other) = (
        RedisClaims::new(trial.redis.clone()),
        RedisClaims::new(trial.redis.clone()),
    );
    let (viewer, now_ms) = (trial.ids.viewer(0), unix_ms());
    let batch = [
        event(viewer, 1, now_ms),
        event(viewer, 2, now_ms - 5 * HOUR_MS),
        event(viewer, 3, now_ms),
    ];
    assert!(one.claim(viewer, &batch, &[0, 1]).await.unwrap().is_empty());
    let known = other.claim(viewer, &batch, &[0, 1, 2]).await.unwrap();
    assert_eq!(known, [0, 1]);

    // The same content with another id, and the same id with other content.
    let renamed = event(viewer, 1, now_ms);
    let altered = AcceptedEvent {
        event_id: batch[0].event_id,
        ..event(viewer, 9, now_ms)
    };
    let fresh = event(viewer, 10, now_ms);
    let again = [fresh, renamed, altered];
    let known = other.claim(viewer, &again, &[0, 1, 2]).await.unwrap();
    assert_eq!(known, [1, 2]);

    // Claims of another viewer are separate.
    let neighbour = trial.ids.viewer(1);
    let theirs = [event(neighbour, 1, now_ms)];
    let known = one.claim(neighbour, &theirs, &[0]).await.unwrap();
    assert!(known.is_empty());
    trial.end().await;
}

#[tokio::test]
async fn claims_outlive_the_oldest_event_that_may_still_arrive() {
    let Some(mut trial) = Trial::begin().await else {
        return;
    };
    let claims = RedisClaims::new(trial.redis.clone());
    let (viewer, now_ms) = (trial.ids.viewer(0), unix_ms());
    let batch = [event(viewer, 1, now_ms)];
    claims.claim(viewer, &batch, &[0]).await.unwrap();
    let key = keys::claims(viewer, now_ms / HOUR_MS);
    let life_s: i64 = trial.raw.ttl(key).await.unwrap();
    assert!((25 * 3_600 - 60..=26 * 3_600).contains(&life_s), "{life_s}");
    trial.end().await;
}
