use super::writer::{connect, try_disk};
use super::*;
use nova_model::event::Action;
use nova_support::clock::unix_ms;
use uuid::Uuid;

fn event(post_id: u64, action: Action) -> AcceptedEvent {
    let now_ms = unix_ms();
    AcceptedEvent {
        event_id: Uuid::now_v7(),
        event_time_ms: now_ms / 1_000 * 1_000,
        accepted_ms: now_ms,
        user_id: 7,
        post_id,
        author_id: 2,
        action,
        dwell_ms: None,
        device: "ios".into(),
        app_ver: "1.0.0".into(),
        ranking_id: None,
    }
}

#[tokio::test]
async fn a_shared_spool_detects_repeats_only_within_one_commit_and_stores_no_seen_posts() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open_shared(dir.path(), 1 << 20).await.unwrap();
    let one = event(1, Action::View);
    let twice = vec![one.clone(), one.clone()];
    assert_eq!(spool.append(twice).await.unwrap().known, [1]);
    assert!(spool.append(vec![one]).await.unwrap().known.is_empty());
    assert_eq!(spool.pending(), 2);
    assert!(spool.seen_since(7, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_repeat_is_dropped_within_a_batch_across_batches_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let view = event(1, Action::View);
    let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
    let batch = vec![
        view.clone(),
        AcceptedEvent {
            event_id: Uuid::now_v7(),
            ..view.clone()
        },
    ];
    assert_eq!(spool.append(batch).await, Ok(Accepted { known: vec![1] }));
    let other_second = AcceptedEvent {
        event_time_ms: view.event_time_ms - 1_000,
        ..view.clone()
    };
    assert_eq!(
        spool.append(vec![other_second]).await,
        Ok(Accepted { known: vec![0] }),
        "the event id was used before"
    );
    drop(spool);
    let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
    assert_eq!(
        spool.append(vec![view]).await,
        Ok(Accepted { known: vec![0] })
    );
    assert_eq!(spool.pending(), 1);
}

#[tokio::test]
async fn entries_are_read_in_order_and_deleted_when_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 20, 100).await.unwrap();
    let posts = [3, 1, 2];
    spool
        .append(posts.map(|post| event(post, Action::Like)).into())
        .await
        .unwrap();
    let (entries, _) = spool.read(0, 10).await.unwrap();
    assert_eq!(
        entries
            .iter()
            .map(|entry| entry.event.post_id)
            .collect::<Vec<_>>(),
        posts
    );
    assert_eq!(entries[0].id, 101, "ids continue after what the sink has");
    spool.forget(entries[1].id).await.unwrap();
    assert_eq!(spool.read(0, 10).await.unwrap().0.len(), 1);
    assert_eq!(spool.pending(), 1);
}

#[tokio::test]
async fn an_undecodable_entry_is_skipped_and_the_entries_behind_it_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
    let likes = [1, 2, 3].map(|post| event(post, Action::Like));
    spool.append(likes.into()).await.unwrap();
    let mut connection = connect(&dir.path().join("spool.db")).await.unwrap();
    for broken in ["{", "{}"] {
        sqlx::query("UPDATE entries SET event = ? WHERE id = 2")
            .bind(broken)
            .execute(&mut connection)
            .await
            .unwrap();
        let (entries, through) = spool.read(0, 10).await.unwrap();
        let posts: Vec<u64> = entries.iter().map(|entry| entry.event.post_id).collect();
        assert_eq!((posts, through), (vec![1, 3], Some(3)), "{broken}");
    }
}

#[tokio::test]
async fn a_full_spool_refuses_events_until_it_is_drained() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 300, 0).await.unwrap();
    spool
        .append(vec![event(1, Action::Like), event(2, Action::Like)])
        .await
        .unwrap();
    assert_eq!(
        spool.append(vec![event(3, Action::Like)]).await,
        Err(SpoolError::Full)
    );
    spool.forget(2).await.unwrap();
    assert_eq!(
        spool.append(vec![event(3, Action::Like)]).await,
        Ok(Accepted::default())
    );
}

#[tokio::test]
async fn repeated_disk_tests_write_a_single_row() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = connect(&dir.path().join("spool.db")).await.unwrap();
    for _ in 0..2 {
        try_disk(&mut connection).await.unwrap();
    }
    let claims: i64 = sqlx::query_scalar("SELECT count(*) FROM claims")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(claims, 1);
}

#[tokio::test]
async fn forgotten_entries_leave_no_bytes_behind_in_any_alphabet() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
    let device = "電話📱".to_owned();
    spool
        .append(vec![AcceptedEvent {
            device,
            ..event(1, Action::Like)
        }])
        .await
        .unwrap();
    assert!(spool.pending_bytes() > 0);
    spool.forget(1).await.unwrap();
    assert_eq!((spool.pending(), spool.pending_bytes()), (0, 0));
}

#[tokio::test]
async fn impressions_and_views_mark_a_post_as_seen_and_likes_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 1 << 20, 0).await.unwrap();
    let events = vec![
        event(1, Action::Impression),
        event(2, Action::View),
        event(3, Action::Like),
    ];
    spool.append(events).await.unwrap();
    let mut seen: Vec<u64> = spool
        .seen_since(7, 0)
        .await
        .unwrap()
        .into_iter()
        .map(|(post, _)| post)
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, [1, 2]);
}
