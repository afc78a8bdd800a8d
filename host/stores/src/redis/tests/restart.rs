//! Tests with their own Redis server, which is stopped and started again in the middle.

use super::{LONG_TIMEOUT, left_out, with_long_timeout};
use crate::breaker::{Breaker, Circuit};
use crate::conformance::Ids;
use crate::conformance::cache::{candidates, digest, snapshot};
use crate::guard::Guard;
use crate::ports::{FeedCache, SeenPosts};
use crate::redis::Redis;
use crate::redis::cache::RedisCache;
use crate::redis::seen::RedisSeen;
use nova_model::snapshot::Algo;
use nova_support::clock::unix_ms;
use redis::InfoDict;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIFE: Duration = Duration::from_secs(120);

struct Server {
    port: u16,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Server {
    async fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut server = Self {
            port,
            dir: tempfile::tempdir().unwrap(),
            child: None,
        };
        let there = std::env::var("REDIS_URL").is_ok() && server.up().await;
        if !there {
            left_out("REDIS_URL not set, or no redis-server to start");
        }
        there.then_some(server)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts the server and waits until it answers; returns `false` if the program is not
    /// installed.
    async fn up(&mut self) -> bool {
        let spawned = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--port"])
            .arg(self.port.to_string())
            .arg("--dir")
            .arg(self.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = spawned else {
            return false;
        };
        self.child = Some(child);
        let client = redis::Client::open(self.url()).unwrap();
        while client.get_multiplexed_async_connection().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }

    fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
    }
}

#[tokio::test]
async fn a_restart_between_two_calls_causes_no_failure() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let redis = with_long_timeout(&server.url());
    let cache = RedisCache::new(redis.clone(), 64 << 20);
    let (viewer, ranking) = (1, Ids::fresh().ranking(0));
    let put = snapshot(viewer, ranking, Algo::Ranked, "a");
    cache.put_snapshot(put.clone(), Some(0)).await.unwrap();
    server.down();
    assert!(server.up().await);
    // All data is gone, the scripts too.
    let latest = cache.latest_snapshot(viewer, digest("a")).await.unwrap();
    assert!(latest.is_none());
    cache
        .put_candidates(viewer, 0, candidates(3), LIFE)
        .await
        .unwrap();
    assert!(cache.candidates(viewer).await.unwrap().candidates.is_some());
    cache.put_snapshot(put, Some(0)).await.unwrap();
    let latest = cache.latest_snapshot(viewer, digest("a")).await.unwrap();
    assert!(latest.is_some());
    RedisSeen::new(redis)
        .mark(viewer, &[1], unix_ms())
        .await
        .unwrap();
}

#[tokio::test]
async fn cursors_of_this_host_work_while_redis_is_down_and_the_cache_recovers() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    server.down();
    let guard = Guard::with_breaker(
        "redis_restart_test",
        LONG_TIMEOUT,
        Breaker::new(Duration::from_millis(100)),
    );
    let redis = Redis::with_guard(&server.url(), guard.clone(), LONG_TIMEOUT).unwrap();
    let cache = RedisCache::new(redis.clone(), 64 << 20);
    let seen = RedisSeen::new(redis);
    let (viewer, ranking) = (1, Ids::fresh().ranking(0));
    let put = snapshot(viewer, ranking, Algo::Ranked, "a");
    assert!(cache.put_snapshot(put.clone(), Some(0)).await.is_err());
    assert!(cache.snapshot(ranking).await.unwrap().is_some());
    assert!(cache.latest_snapshot(viewer, digest("a")).await.is_err());
    assert!(cache.candidates(viewer).await.is_err());
    assert!(seen.version(viewer).await.is_err());
    assert_eq!(guard.circuit(), Circuit::Open);
    assert!(server.up().await);
    // Once Redis is up, the next probe closes the circuit.
    while cache.put_snapshot(put.clone(), Some(0)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let latest = cache.latest_snapshot(viewer, digest("a")).await.unwrap();
    assert!(latest.is_some());
    assert_eq!(guard.circuit(), Circuit::Closed);
}

#[tokio::test]
async fn a_hit_on_a_snapshot_in_this_hosts_memory_costs_one_small_command() {
    let Some(server) = Server::start().await else {
        return;
    };
    let redis = with_long_timeout(&server.url());
    let cache = RedisCache::new(redis.clone(), 64 << 20);
    let put = snapshot(1, Ids::fresh().ranking(0), Algo::Ranked, "a");
    cache.put_snapshot(put, Some(0)).await.unwrap();
    for _ in 0..10 {
        let hit = cache.latest_snapshot(1, digest("a")).await.unwrap();
        assert!(hit.is_some());
    }
    let stats: InfoDict = redis
        .call("info", redis::cmd("INFO").arg("commandstats").to_owned())
        .await
        .unwrap();
    let calls = |command: &str| -> Option<String> { stats.get(&format!("cmdstat_{command}")) };
    assert!(calls("hget").unwrap().starts_with("calls=10,"));
    assert_eq!(calls("getex"), None);
}
