//! Against a real Redis, the one `REDIS_URL` names, beside whatever else it holds: every test has ids of its own and
//! removes what it made.

mod cache;
mod claims;
mod parts;
mod restart;
mod seen;

use super::Redis;
use crate::stores::conformance::Ids;
use crate::stores::guard::Guard;
use redis::{AsyncCommands as _, aio::MultiplexedConnection};
use std::time::Duration;

/// On a busy machine an answer may take longer than a feed would wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

fn patient(url: &str) -> Redis {
    Redis::with_guard(url, Guard::new("redis_tests", PATIENCE), PATIENCE).unwrap()
}

/// Whether a test may leave itself out because a server is missing.
fn left_out(what: &str) {
    let required = std::env::var("NOVA_REQUIRE_SERVICES").is_ok_and(|value| value == "1");
    assert!(!required, "{what}, and NOVA_REQUIRE_SERVICES=1");
    eprintln!("not run on Redis: {what}");
}

struct Trial {
    redis: Redis,
    /// To look and meddle past the adapter.
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
            redis: patient(&url),
            raw: client.get_multiplexed_async_connection().await.unwrap(),
            ids: Ids::fresh(),
        })
    }

    /// Every key this test made.
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
