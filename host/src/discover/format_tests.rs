//! Stored values, in `tests/fixtures/formats`, of the lists that hosts share.

use super::suggested;
use super::trending::{TrendingItem, Window};
use nova_model::user::SuggestedUser;
use nova_stores::embedded::cache::ProcessCache;
use nova_stores::ports::ValueCache;
use nova_stores::shared::{self, Shared};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(60);

macro_rules! stored {
    ($name:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/formats/v1/redis/",
            $name
        ))
    };
}
pub(crate) use stored;

/// Returns the stored value, and checks that it is stored again as the same bytes, but for its
/// time.
pub(crate) async fn read<T: Serialize + DeserializeOwned>(stored: &[u8]) -> T {
    let values = ProcessCache::new(1 << 20);
    values.put("old", stored.to_vec(), TTL).await.unwrap();
    let found: Shared<T> = shared::get(&values, "test", "old").await.unwrap();
    shared::put(&values, "new", &found.value, TTL).await;
    let again = values.get("new").await.unwrap().unwrap();
    let parts = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, value) = text.split_once(",\"value\":").unwrap();
        let head = head.trim_end_matches(|c: char| c.is_ascii_digit());
        (head.to_owned(), value.to_owned())
    };
    assert_eq!(parts(&again), parts(stored));
    found.value
}

#[tokio::test]
async fn a_stored_trending_list_is_read() {
    let found: Vec<TrendingItem> = read(stored!("trending.bin")).await;
    let expected = TrendingItem {
        post_id: 101,
        author_id: 2,
        engagement_count: 9,
        views: 7,
        likes: 2,
        comments: 2,
        shares: 1,
        window_start: "2025-06-15T15:00:00.000Z".into(),
    };
    assert_eq!(found, [expected]);
}

#[tokio::test]
async fn a_stored_list_of_suggested_users_is_read() {
    let found: Vec<SuggestedUser> = read(stored!("suggested_users.bin")).await;
    let expected = SuggestedUser {
        user_id: 7,
        username: "ann".into(),
        avatar_url: "https://x.example/7.png".into(),
        bio: "größer".into(),
        follower_count: 3,
        affinity_score: 1.098_612_288_668_109_8,
    };
    assert_eq!(found, [expected]);
}

#[test]
fn the_names_of_keys_never_change() {
    let windows = [Window::Hour, Window::Day, Window::Week];
    let keys = windows.map(|window| [window.key(), window.last_key()]);
    assert_eq!(
        keys.concat(),
        [
            "hot:posts:1h",
            "last:posts:1h",
            "hot:posts:24h",
            "last:posts:24h",
            "hot:posts:7d",
            "last:posts:7d"
        ]
    );
    assert_eq!(suggested::key(42), "suggest:users:42");
}
