//! Conformance test of the embedded store: loaded through import and the sink, it returns the
//! model's results.

use super::EmbeddedStore;
use crate::conformance::{Community, Model, Reaction, assert_conforms};
use crate::import::{ImportOptions, import_dir};
use crate::ports::EventSink as _;
use chrono::DateTime;
use nova_model::time::DAY_MS;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

const NOW_MS: u64 = 1_773_146_096_789;

fn time(at_ms: u64) -> String {
    DateTime::from_timestamp_millis(i64::try_from(at_ms).unwrap())
        .unwrap()
        .to_rfc3339()
}

fn reactions(header: &str, rows: &[Reaction]) -> String {
    let mut csv = format!("{header}\n");
    for row in rows {
        let user = row.user.map(|id| id.to_string()).unwrap_or_default();
        writeln!(csv, "{},{},{user},{}", row.id, row.post, time(row.at_ms)).unwrap();
    }
    csv
}

fn write_csv_files(community: &Community, dir: &Path) {
    let mut users = String::from("user_id,created_at\n");
    for (user, at_ms) in &community.users {
        writeln!(users, "{user},{}", time(*at_ms)).unwrap();
    }
    let mut posts = String::from("post_id,author_id,created_at,view_count\n");
    for (post, views) in &community.posts {
        let at = time(post.created_at_ms);
        writeln!(posts, "{},{},{at},{views}", post.post_id, post.author_id).unwrap();
    }
    let mut follows = String::from("follower_id,following_id,created_at\n");
    for (who, whom, at_ms) in &community.follows {
        writeln!(follows, "{who},{whom},{}", time(*at_ms)).unwrap();
    }
    let likes = reactions("like_id,post_id,user_id,created_at", &community.likes);
    let comments = reactions("comment_id,post_id,user_id,created_at", &community.comments);
    for (name, text) in [
        ("users.csv", users),
        ("posts.csv", posts),
        ("follows.csv", follows),
        ("likes.csv", likes),
        ("comments.csv", comments),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

async fn load(store: &EmbeddedStore, community: &Community) {
    let csv_dir = tempfile::tempdir().unwrap();
    write_csv_files(community, csv_dir.path());
    let options = ImportOptions {
        shift_to_now: false,
        now_ms: community.now_ms,
    };
    import_dir(store, csv_dir.path(), &options, &mut |_| {})
        .await
        .unwrap();
    for (batch, through) in community.batches.iter().zip(1..) {
        store.write(batch, through).await.unwrap();
    }
    for post in &community.deleted {
        sqlx::query("UPDATE posts SET deleted = 1 WHERE post_id = ?")
            .bind(i64::try_from(*post).unwrap())
            .execute(store.writer())
            .await
            .unwrap();
    }
}

async fn compare_seen(store: &EmbeddedStore, model: &Model, viewer: u64) {
    let since_ms = model.now_ms - DAY_MS;
    let (_, seen) = model.shown_to(viewer, since_ms);
    let found = store.seen_since(viewer, since_ms).await.unwrap();
    assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), seen);
}

#[tokio::test]
async fn sources_aggregates_and_suggestions_agree_with_the_model_on_random_communities() {
    for seed in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path()).await.unwrap();
        let (community, model) = Community::random(seed, NOW_MS);
        load(&store, &community).await;
        assert_conforms(&store, &model).await;
        for viewer in 1..=10 {
            compare_seen(&store, &model, viewer).await;
        }
    }
}
