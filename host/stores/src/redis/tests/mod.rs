//! Tests against a real Redis, the one that `REDIS_URL` names. It may hold other data: every test
//! uses its own ids and removes the keys it created.

mod cache;
mod claims;
mod parts;
mod restart;
mod seen;

use super::Redis;
use crate::conformance::Ids;
use crate::guard::Guard;
use redis::{AsyncCommands as _, aio::MultiplexedConnection};
use std::time::Duration;

/// Timeout in tests. On a busy machine an answer may take longer than a feed request would wait
/// for it.
const LONG_TIMEOUT: Duration = Duration::from_secs(10);

fn with_long_timeout(url: &str) -> Redis {
    Redis::with_guard(url, Guard::new("redis_tests", LONG_TIMEOUT), LONG_TIMEOUT).unwrap()
}

/// Skips a test because a server is missing; panics if servers are required.
fn left_out(what: &str) {
    let required = std::env::var("NOVA_REQUIRE_SERVICES").is_ok_and(|value| value == "1");
    assert!(!required, "{what}, and NOVA_REQUIRE_SERVICES=1");
    eprintln!("not run on Redis: {what}");
}

struct Trial {
    redis: Redis,
    /// A connection that reads and changes data directly, without the adapter.
    raw: MultiplexedConnection,
    ids: Ids,
}

impl Trial {
    async fn begin() -> Option<Self> {
        let Ok(url) = std::env::var("REDIS_URL") else {
            left_out("REDIS_URL not set");
            return None;
        };
        let client = redis::Client::open(url.as_str()).unwrap();
        Some(Self {
            redis: with_long_timeout(&url),
            raw: client.get_multiplexed_async_connection().await.unwrap(),
            ids: Ids::fresh(),
        })
    }

    /// Every key that this test created.
    async fn keys(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        for pattern in self.ids.key_patterns() {
            let found: Vec<String> = self.raw.keys(pattern).await.unwrap();
            all.extend(found);
        }
        all
    }

    async fn end(mut self) {
        for key in self.keys().await {
            let () = self.raw.unlink(key).await.unwrap();
        }
    }
}
