//! Tests that ClickHouse counts the same exposures and daily metrics as the embedded store.

use super::TestDatabase;
use super::conformance::store_run;
use crate::embedded::EmbeddedStore;
use crate::ports::{EventSink as _, ExposureStore};
use nova_model::event::{AcceptedEvent, Action};
use nova_model::exposure::Exposure;
use nova_model::time::DAY_MS;
use nova_support::clock::unix_ms;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::borrow::Cow;
use uuid::Uuid;

const POSTS: u64 = 60;
const USERS: u64 = 12;
const REASONS: [&str; 4] = ["followees", "affinity", "trending", "recent"];

fn exposure(rng: &mut StdRng, day_start_ms: u64) -> Exposure {
    let experiment = rng.random_bool(0.4).then(|| "e".to_owned());
    let variation = experiment
        .as_ref()
        .map(|_| format!("v{}", rng.random_range(0..2)));
    let digest = rng.random_range(0..3);
    let post = |rng: &mut StdRng| {
        let reason = REASONS[rng.random_range(0..REASONS.len())];
        (rng.random_range(1..=POSTS), Cow::Borrowed(reason))
    };
    let mut posts: Vec<(u64, Cow<'static, str>)> = (0..12).map(|_| post(rng)).collect();
    // A post that appears twice has the same reason both times.
    for at in 1..posts.len() {
        let first = posts.iter().position(|(id, _)| *id == posts[at].0).unwrap();
        posts[at].1 = posts[first].1.clone();
    }
    Exposure {
        ranking_id: Uuid::from_u128(rng.random()),
        request_id: "r".into(),
        user_id: rng.random_range(1..=USERS),
        // Some rankings lie before the day and some after it.
        served_at_ms: day_start_ms - 2 * DAY_MS + rng.random_range(0..4 * DAY_MS),
        served_by: "policy".into(),
        policy: "p@1.0.0".into(),
        effective_digest: format!("digest{digest}"),
        experiment,
        variation,
        posts,
        degraded: if rng.random_bool(0.2) {
            vec!["redis".into()]
        } else {
            Vec::new()
        },
    }
}

fn event(rng: &mut StdRng, exposures: &[Exposure], day_start_ms: u64) -> AcceptedEvent {
    let named = exposures[rng.random_range(0..exposures.len())].ranking_id;
    let invented = Uuid::from_u128(rng.random());
    let at_ms = day_start_ms - DAY_MS / 4 + rng.random_range(0..DAY_MS * 3 / 2);
    AcceptedEvent {
        event_id: Uuid::from_u128(rng.random()),
        event_time_ms: at_ms,
        accepted_ms: at_ms,
        user_id: rng.random_range(1..=USERS),
        post_id: rng.random_range(1..=POSTS),
        author_id: 1,
        action: Action::ALL[rng.random_range(0..Action::ALL.len())],
        dwell_ms: (rng.random_bool(0.3)).then(|| rng.random_range(0..9_000)),
        device: "ios".into(),
        app_ver: "1.0.0".into(),
        ranking_id: [None, Some(named), Some(invented)][rng.random_range(0..3)],
    }
}

#[tokio::test]
async fn exposures_and_daily_metrics_equal_those_of_the_embedded_store() {
    let Some(database) = TestDatabase::migrated().await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let embedded = EmbeddedStore::open(directory.path()).await.unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let day_start_ms = unix_ms() / DAY_MS * DAY_MS - 2 * DAY_MS;
    let exposures: Vec<Exposure> = (0..400).map(|_| exposure(&mut rng, day_start_ms)).collect();
    let events: Vec<AcceptedEvent> = (0..1_500)
        .map(|_| event(&mut rng, &exposures, day_start_ms))
        .collect();

    embedded.record(&exposures).await.unwrap();
    // Recorded twice, as by a consumer that restarts.
    for _ in 0..2 {
        database.store.record(&exposures).await.unwrap();
    }
    let kept = store_run(&database.store, 0, &events, 1).await;
    assert_eq!(embedded.write(&events, 1).await.unwrap(), kept as u64);

    let expected = embedded.daily_metrics(day_start_ms).await.unwrap();
    assert!(expected.overall.recommended_views > 0 && expected.by_digest.len() == 3);
    assert_eq!(
        database.store.daily_metrics(day_start_ms).await.unwrap(),
        expected
    );
    let quiet_day_ms = day_start_ms - 30 * DAY_MS;
    assert_eq!(
        database.store.daily_metrics(quiet_day_ms).await.unwrap(),
        embedded.daily_metrics(quiet_day_ms).await.unwrap()
    );

    let counts = embedded.variation_counts("e").await.unwrap();
    assert_eq!(database.store.variation_counts("e").await.unwrap(), counts);
    let active = embedded.active_viewers(day_start_ms, 5).await.unwrap();
    assert_eq!(
        database
            .store
            .active_viewers(day_start_ms, 5)
            .await
            .unwrap(),
        active
    );
}
