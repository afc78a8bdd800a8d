//! Tombstones of deleted posts, and restorations of posts, published to every host at once,
//! because snapshots and cached candidates may still contain those posts.
//!
//! The sorted set is authoritative. A message on the channel only announces that the set
//! has changed. A host that was disconnected, or missed a message, reads the same set and
//! so misses no change.

#![expect(
    clippy::disallowed_methods,
    reason = "waits for news of a subscription, not for a call"
)]

use super::{Redis, keys};
use crate::ports::StoreResult;
use futures::{Stream, StreamExt as _};
use nova_model::deleted::{KEPT_MS, Tombstone};
use nova_model::time::UnixMs;
use redis::aio::PubSubStream;
use redis::{RedisResult, Script, cmd};
use std::sync::LazyLock;
use std::time::Duration;

/// Name of the breaker for these calls in metrics.
const CIRCUIT: &str = "redis_deletions";
/// Maximum number of entries in one reply; one call of the script gets a tenth of it.
const PAGE: usize = 10_000;
/// Timeout of a call. When a host starts, the set is long, and no request waits for it.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time that a lost message may go unnoticed.
const POLL: Duration = Duration::from_secs(5);
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

static MARK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("mark_deleted.lua")));

#[derive(Debug, Clone)]
pub struct Tombstones {
    redis: Redis,
}

/// A published deletion or restoration of a post, with its time by the clock of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedTombstone {
    pub post_id: u64,
    pub deleted: bool,
    pub at_ms: UnixMs,
}

/// Decodes an entry of the set. A negative member is a restored post.
pub(super) fn decode((member, at_ms): (i64, UnixMs)) -> PublishedTombstone {
    PublishedTombstone {
        post_id: member.unsigned_abs(),
        deleted: member > 0,
        at_ms,
    }
}

impl Tombstones {
    /// Creates the client with a long timeout, because no request waits for these calls and Redis
    /// may be busy for a moment.
    pub fn new(redis: &Redis) -> Self {
        Self {
            redis: redis.in_background(CIRCUIT, READ_TIMEOUT),
        }
    }

    /// Publishes tombstones and restorations.
    ///
    /// # Errors
    /// Fails if Redis did not accept them. Publishing them again does no harm.
    pub async fn publish(&self, tombstones: &[Tombstone]) -> StoreResult<()> {
        for tombstones in tombstones.chunks(PAGE / 10) {
            let mut script = MARK.key(keys::DELETED);
            script.key(keys::DELETED_VERSIONS);
            script.arg(keys::DELETED_CHANNEL).arg(KEPT_MS);
            for tombstone in tombstones {
                script
                    .arg(tombstone.post_id)
                    .arg(tombstone.version)
                    .arg(u8::from(tombstone.deleted));
            }
            let () = self.redis.call("mark_deleted", script).await?;
        }
        Ok(())
    }

    /// Returns deletions and restorations at or after `since_ms`, oldest first.
    ///
    /// # Errors
    /// Fails if Redis did not answer.
    pub async fn recent(&self, since_ms: UnixMs) -> StoreResult<Vec<PublishedTombstone>> {
        let mut all: Vec<PublishedTombstone> = Vec::new();
        loop {
            let mut command = cmd("ZRANGEBYSCORE");
            command
                .arg(keys::DELETED)
                .arg(since_ms)
                .arg("+inf")
                .arg("WITHSCORES")
                .arg("LIMIT")
                .arg(all.len())
                .arg(PAGE);
            let page: Vec<(i64, UnixMs)> = self.redis.call("recent_deleted", command).await?;
            let is_last = page.len() < PAGE;
            all.extend(page.into_iter().map(decode));
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Streams all earlier deletions and restorations, then every new one; the lists are never
    /// empty. The stream has no end and survives every outage: changes made during an outage
    /// come first after it.
    pub fn follow(&self) -> impl Stream<Item = Vec<PublishedTombstone>> + Send + use<> {
        let follower = Follower {
            tombstones: self.clone(),
            messages: None,
            known: Vec::new(),
            is_due: true,
        };
        futures::stream::unfold(follower, |mut follower| async {
            let news = follower.next().await;
            Some((news, follower))
        })
    }
}

struct Follower {
    tombstones: Tombstones,
    /// `None` while there is no subscription.
    messages: Option<PubSubStream>,
    /// The last changes that were returned. All have the same millisecond, in which there
    /// may be more changes.
    known: Vec<PublishedTombstone>,
    /// True if the set may have changed since it was last read.
    is_due: bool,
}

impl Follower {
    async fn next(&mut self) -> Vec<PublishedTombstone> {
        loop {
            self.wait().await;
            let since_ms = self.known.first().map_or(0, |published| published.at_ms);
            match self.tombstones.recent(since_ms).await {
                Ok(mut news) => {
                    self.is_due = false;
                    news.retain(|deletion| !self.known.contains(deletion));
                    if !news.is_empty() {
                        self.remember(&news);
                        return news;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "could not read deleted posts from Redis; trying again");
                    self.is_due = true;
                    tokio::time::sleep(RECONNECT_DELAY).await;
                }
            }
        }
    }

    fn remember(&mut self, news: &[PublishedTombstone]) {
        let newest_ms = news
            .iter()
            .map(|published| published.at_ms)
            .max()
            .unwrap_or(0);
        self.known.extend(news);
        self.known.retain(|published| published.at_ms == newest_ms);
    }

    /// Waits until there may be changes. It subscribes before the set is read, so that no change
    /// is lost between the two.
    async fn wait(&mut self) {
        let Some(messages) = &mut self.messages else {
            match tokio::time::timeout(RECONNECT_DELAY, self.subscribe()).await {
                Ok(Ok(messages)) => self.messages = Some(messages),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "could not subscribe to deleted posts; polling instead and trying again");
                    tokio::time::sleep(RECONNECT_DELAY).await;
                }
                Err(_) => tracing::debug!("subscribing to deleted posts timed out; trying again"),
            }
            return;
        };
        if self.is_due {
            return;
        }
        if let Ok(None) = tokio::time::timeout(POLL, messages.next()).await {
            self.messages = None;
        }
    }

    async fn subscribe(&self) -> RedisResult<PubSubStream> {
        let connection = self.tombstones.redis.client().get_async_pubsub().await?;
        let (mut sink, messages) = connection.split();
        sink.subscribe(keys::DELETED_CHANNEL).await?;
        Ok(messages)
    }
}
