//! Deleted posts, and those that came back, told to every host at once: snapshots and cached candidates may still hold them.
//!
//! The sorted set is the truth; a message on the channel only says that it has grown, so a host that was cut off, or
//! missed a message, reads the same set and has missed nothing.

use super::{Redis, keys};
use crate::feed::deleted::{Fate, KEPT_MS};
use crate::stores::{StoreResult, UnixMs};
use futures::{Stream, StreamExt as _};
use redis::aio::PubSubStream;
use redis::{RedisResult, Script, cmd};
use std::sync::LazyLock;
use std::time::Duration;

/// The name of their circuit in metrics.
const CIRCUIT: &str = "redis_deletions";
/// Deleted posts in one call of the script, or one answer.
const PAGE: usize = 10_000;
/// The set is long at the start of a host, and nobody waits for it.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a lost message may go unnoticed.
const POLL: Duration = Duration::from_secs(5);
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

static MARK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("mark_deleted.lua")));

#[derive(Debug, Clone)]
pub struct Tombstones {
    redis: Redis,
}

/// What became of a post, and when by the clock of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    pub post_id: u64,
    pub deleted: bool,
    pub at_ms: UnixMs,
}

/// A post that came back is the negative member.
fn told((member, at_ms): (i64, UnixMs)) -> Told {
    Told {
        post_id: member.unsigned_abs(),
        deleted: member > 0,
        at_ms,
    }
}

impl Tombstones {
    /// Nobody waits for these, so Redis has the time that a busy moment costs.
    pub fn new(redis: &Redis) -> Self {
        Self {
            redis: redis.in_background(CIRCUIT, READ_TIMEOUT),
        }
    }

    /// # Errors
    /// Redis could not be told; telling it again does no harm.
    pub async fn tell(&self, fates: &[Fate]) -> StoreResult<()> {
        for fates in fates.chunks(PAGE / 10) {
            let mut script = MARK.key(keys::DELETED);
            script.key(keys::DELETED_VERSIONS);
            script.arg(keys::DELETED_CHANNEL).arg(KEPT_MS);
            for fate in fates {
                script
                    .arg(fate.post_id)
                    .arg(fate.version)
                    .arg(u8::from(fate.deleted));
            }
            let () = self.redis.ask("mark_deleted", script).await?;
        }
        Ok(())
    }

    /// What became of posts at or after `since_ms`, oldest first.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn recent(&self, since_ms: UnixMs) -> StoreResult<Vec<Told>> {
        let mut all: Vec<Told> = Vec::new();
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
            let page: Vec<(i64, UnixMs)> = self.redis.ask("recent_deleted", command).await?;
            let is_last = page.len() < PAGE;
            all.extend(page.into_iter().map(told));
            if is_last {
                return Ok(all);
            }
        }
    }

    /// What becomes of posts from now on, after all that became of them before; never empty lists. The stream has no end and
    /// bridges every outage: what was deleted meanwhile comes first.
    pub fn follow(&self) -> impl Stream<Item = Vec<Told>> + Send + use<> {
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
    /// The last deletions that were told: all of the same millisecond, in which there may be more.
    known: Vec<Told>,
    /// There may be news.
    is_due: bool,
}

impl Follower {
    async fn next(&mut self) -> Vec<Told> {
        loop {
            self.wait().await;
            let since_ms = self.known.first().map_or(0, |told| told.at_ms);
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
                    tracing::debug!(%error, "deleted posts cannot be read");
                    self.is_due = true;
                    tokio::time::sleep(RECONNECT_DELAY).await;
                }
            }
        }
    }

    fn remember(&mut self, news: &[Told]) {
        let newest_ms = news.iter().map(|told| told.at_ms).max().unwrap_or(0);
        self.known.extend(news);
        self.known.retain(|told| told.at_ms == newest_ms);
    }

    /// Until there may be news. Subscribes before the set is read, so that nothing falls between the two.
    async fn wait(&mut self) {
        let Some(messages) = &mut self.messages else {
            match tokio::time::timeout(RECONNECT_DELAY, self.subscribe()).await {
                Ok(Ok(messages)) => self.messages = Some(messages),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no subscription to deleted posts");
                    tokio::time::sleep(RECONNECT_DELAY).await;
                }
                Err(_) => tracing::debug!("no subscription to deleted posts in time"),
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
