//! The conformance tests on data that is loaded as in production: by change data capture, by
//! import, and in batches from the broker that are checked for duplicates, some of them stored
//! twice.

use super::TestDatabase;
use crate::clickhouse::events::{EventRow, action_number};
use crate::clickhouse::{
    ClickHouseStore, CommentRow, FollowRow, LikeRow, PartitionRun, PostRow, UserRow, to_ticks,
};
use crate::conformance::{Community, Reaction, assert_conforms};
use nova_model::event::{AcceptedEvent, Action};
use nova_model::post::Post;
use nova_support::clock::unix_ms;
use uuid::Uuid;

const IMPORTED: u64 = 0;
const CDC_VERSION: u64 = 1_000;
const DELETED: u64 = 2_000;

fn post_row(post: &Post, version: u64, is_deleted: u8) -> PostRow {
    PostRow {
        post_id: post.post_id,
        author_id: post.author_id,
        created_at: to_ticks(post.created_at_ms),
        version,
        is_deleted,
    }
}

async fn load_rows(store: &ClickHouseStore, community: &Community) {
    let users: Vec<UserRow> = (community.users.iter())
        .map(|(user_id, at_ms)| UserRow {
            user_id: *user_id,
            username: format!("user{user_id}"),
            avatar_url: String::new(),
            bio: String::new(),
            country: "DE".into(),
            language: "de".into(),
            created_at: to_ticks(*at_ms),
            version: IMPORTED,
            is_deleted: 0,
        })
        .collect();
    store.insert_cdc(&users).await.unwrap();
    let follow = |(follower_id, following_id, at_ms): &(u64, u64, u64)| FollowRow {
        follower_id: *follower_id,
        following_id: *following_id,
        created_at: to_ticks(*at_ms),
        version: IMPORTED,
        is_deleted: 0,
    };
    let mut follows: Vec<FollowRow> = community.follows.iter().map(follow).collect();
    store.insert_cdc(&follows).await.unwrap();
    // Each follow is removed, then added again; the older change is delivered last, and twice.
    for (version, is_deleted) in [(CDC_VERSION + 1, 0), (CDC_VERSION, 1), (CDC_VERSION, 1)] {
        for row in follows.iter_mut().step_by(3) {
            (row.version, row.is_deleted) = (version, is_deleted);
        }
        let changed: Vec<FollowRow> = follows.iter().step_by(3).cloned().collect();
        store.insert_cdc(&changed).await.unwrap();
    }
    let posts: Vec<PostRow> = (community.posts.iter())
        .map(|(post, _)| post_row(post, IMPORTED, 0))
        .collect();
    // The posts are imported, and some arrive again by CDC.
    store.insert_cdc(&posts).await.unwrap();
    let changed: Vec<PostRow> = (community.posts.iter().step_by(2))
        .map(|(post, _)| post_row(post, CDC_VERSION, 0))
        .collect();
    store.insert_cdc(&changed).await.unwrap();
}

fn imported(reaction: &Reaction, action: Action, times: u64, import_id: String) -> EventRow {
    EventRow {
        event_id: Uuid::new_v4(),
        event_time: to_ticks(reaction.at_ms),
        accepted_at: to_ticks(reaction.at_ms),
        user_id: reaction.user.unwrap_or(0),
        post_id: reaction.post,
        author_id: reaction.author,
        action: action_number(action),
        dwell_ms: None,
        device: String::new(),
        app_ver: String::new(),
        ranking_id: None,
        times,
        origin: 2,
        kafka_partition: -1,
        kafka_offset: 0,
        import_id,
    }
}

async fn load_history(store: &ClickHouseStore, community: &Community) {
    let mut rows = Vec::new();
    for (post, views) in &community.posts {
        let shown = Reaction {
            id: post.post_id,
            post: post.post_id,
            author: post.author_id,
            user: None,
            at_ms: post.created_at_ms,
        };
        for action in [Action::View, Action::Impression] {
            let import_id = format!("{}s:{}", action.as_str(), post.post_id);
            rows.push(imported(&shown, action, *views, import_id));
        }
    }
    for (action, reactions) in [
        (Action::Like, &community.likes),
        (Action::Comment, &community.comments),
    ] {
        let row = |found: &Reaction| {
            imported(
                found,
                action,
                1,
                format!("{}:{}", action.as_str(), found.id),
            )
        };
        rows.extend(reactions.iter().map(row));
    }
    for (part, rows) in rows.chunks(700).enumerate() {
        let token = format!("import:{part}");
        for _ in 0..2 {
            store.insert("events", rows, Some(&token)).await.unwrap();
        }
    }
    let likes: Vec<LikeRow> = (community.likes.iter())
        .map(|like| LikeRow {
            like_id: like.id,
            post_id: like.post,
            user_id: like.user.unwrap_or(0),
            created_at: to_ticks(like.at_ms),
            version: IMPORTED,
            is_deleted: 0,
        })
        .collect();
    store.insert_cdc(&likes).await.unwrap();
    let comments: Vec<CommentRow> = (community.comments.iter())
        .map(|comment| CommentRow {
            comment_id: comment.id,
            post_id: comment.post,
            user_id: comment.user.unwrap_or(0),
            created_at: to_ticks(comment.at_ms),
            version: IMPORTED,
            is_deleted: 0,
        })
        .collect();
    store.insert_cdc(&comments).await.unwrap();
}

/// Stores a run as a consumer does, `attempts` times, like a consumer that never learns that it
/// succeeded.
pub(super) async fn store_run(
    store: &ClickHouseStore,
    first_offset: i64,
    batch: &[AcceptedEvent],
    attempts: u32,
) -> usize {
    let run = PartitionRun {
        partition: 3,
        first_offset,
        last_offset: first_offset + i64::try_from(batch.len()).unwrap() - 1,
    };
    let token = format!("events:3:{first_offset}-{}", run.last_offset);
    let events: Vec<&AcceptedEvent> = batch.iter().collect();
    let mut stored = 0;
    for _ in 0..attempts {
        let repeats = store.duplicates_of(run, &events).await.unwrap();
        let new: Vec<(i64, &AcceptedEvent)> = (first_offset..)
            .zip(&events)
            .zip(repeats)
            .filter_map(|((offset, event), is_repeat)| (!is_repeat).then_some((offset, *event)))
            .collect();
        store.insert_events(run, &new, &token).await.unwrap();
        stored = new.len();
    }
    stored
}

#[tokio::test]
async fn clickhouse_gives_the_same_answers_as_the_model_on_random_communities() {
    for seed in 0..2 {
        let Some(database) = TestDatabase::migrated().await else {
            return;
        };
        let store = &database.store;
        let (community, model) = Community::random(seed, unix_ms());
        load_rows(store, &community).await;
        load_history(store, &community).await;
        let mut offset = 0;
        for (number, batch) in community.batches.iter().enumerate() {
            let attempts = if number % 3 == 0 { 2 } else { 1 };
            store_run(store, offset, batch, attempts).await;
            offset += i64::try_from(batch.len()).unwrap();
        }
        let deleted: Vec<PostRow> = (community.posts.iter())
            .filter(|(post, _)| community.deleted.contains(&post.post_id))
            .map(|(post, _)| post_row(post, DELETED, 1))
            .collect();
        store.insert_cdc(&deleted).await.unwrap();
        assert_conforms(store, &model).await;
    }
}
