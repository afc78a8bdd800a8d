//! The feed response: its shape, its caches and its cursors.

use crate::harness::{Host, post_ids};
use std::collections::HashSet;

#[tokio::test]
async fn a_stranger_gets_a_full_first_page_and_asking_again_is_a_cache_hit() {
    let host = Host::with_community();
    let first = host.feed(999_999).await;
    assert_eq!(post_ids(&first).len(), 50);
    assert_eq!(
        (&first["cache_hit"], &first["served_by"]),
        (&false.into(), &"policy".into())
    );
    let again = host.feed(999_999).await;
    assert_eq!(
        (&again["cache_hit"], &again["ranking_id"]),
        (&true.into(), &first["ranking_id"])
    );
    assert_eq!(post_ids(&again), post_ids(&first));
}

#[tokio::test]
async fn following_the_cursor_to_its_end_shows_every_post_once() {
    let host = Host::with_community();
    let token = host.viewer_token(7);
    let mut page = host.get(&token, "/api/v1/feed?limit=7").await.ok(200);
    let (total, ranking) = (
        page["total_count"].as_u64().unwrap(),
        page["ranking_id"].clone(),
    );
    let mut shown = post_ids(&page);
    while let Some(cursor) = page["cursor"].as_str() {
        page = host
            .get(&token, &format!("/api/v1/feed?limit=7&cursor={cursor}"))
            .await
            .ok(200);
        assert_eq!(page["ranking_id"], ranking);
        shown.extend(post_ids(&page));
    }
    assert_eq!(shown.len() as u64, total);
    assert_eq!(shown.iter().collect::<HashSet<_>>().len(), shown.len());
}
