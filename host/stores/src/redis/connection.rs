//! The connection to Redis, and the deadline of every call to it (50 ms). All callers share one
//! connection, and concurrent commands travel in one write.
//!
//! The first caller opens the connection, and it is opened again when it breaks. A command that
//! finds it broken is sent once more within the same deadline, because a restart of Redis
//! should cause no more than a slow answer. Therefore every command here may be sent twice.

use super::STORE_NAME;
use super::concurrency_limit::ConcurrencyLimit;
use crate::guard::{Failure, Guard};
use crate::ports::StoreResult;
use anyhow::Context;
use arc_swap::ArcSwap;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline, RedisError, RedisResult,
    RetryMethod, ScriptInvocation,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Timeout of a call. A cache that takes longer costs more than it saves.
pub const CALL_TIMEOUT: Duration = Duration::from_millis(50);
/// Maximum number of commands queued for writing; beyond it callers wait for a place in the queue.
const PIPELINE_COMMANDS: usize = 1_024;

#[derive(Clone)]
pub struct Redis {
    client: Client,
    manager: Arc<ArcSwap<ConnectionManager>>,
    guard: Guard,
    limit: Arc<ConcurrencyLimit>,
    timeout: Duration,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client's own `Debug` output may show the password in its URL.
        f.debug_struct("Redis").finish_non_exhaustive()
    }
}

impl Redis {
    /// Creates the client without connecting. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Fails if `url` is not a Redis URL.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        Self::with_guard(url, Guard::new(STORE_NAME, CALL_TIMEOUT), CALL_TIMEOUT)
    }

    /// Creates the client with a guard that has another breaker; `timeout` must be the timeout
    /// of `guard`.
    ///
    /// # Errors
    /// Fails if `url` is not a Redis URL.
    pub fn with_guard(url: &str, guard: Guard, timeout: Duration) -> anyhow::Result<Self> {
        let info = url
            .into_connection_info()
            .context("REDIS_URL is not a Redis URL; expected redis://host:port/database")?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).context("REDIS_URL")?;
        let manager = connect_lazily(&client).context("REDIS_URL")?;
        Ok(Self {
            client,
            manager: Arc::new(ArcSwap::from_pointee(manager)),
            guard,
            limit: Arc::default(),
            timeout,
        })
    }

    /// Returns a client on the same connection for background work, whose calls may take
    /// `timeout`. It has its own breaker, because slow answers that background work can wait for
    /// say nothing about answers that a feed request needs.
    pub fn in_background(&self, circuit: &'static str, timeout: Duration) -> Self {
        let breaker = self.guard.breaker_like();
        Self {
            guard: Guard::for_some(STORE_NAME, circuit, timeout, breaker),
            limit: Arc::default(),
            timeout,
            ..self.clone()
        }
    }

    /// The client for opening a separate connection, which a subscription needs.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a command, a pipeline or a script, and reads its answer.
    ///
    /// # Errors
    /// Fails if Redis did not answer in time or refused, if the circuit is open, or if too many
    /// calls are in progress.
    pub(super) async fn call<'a, T: FromRedisValue + Send>(
        &self,
        query: &'static str,
        request: impl Into<Request<'a>>,
    ) -> StoreResult<T> {
        let Some(_permit) = self.limit.acquire().await else {
            return Err(self.guard.shed(query));
        };
        let answer = self.guard.run(query, self.exchange(request.into())).await;
        let failed = answer.as_ref().is_err_and(|error| error.retryable);
        self.limit.ended_with(!failed);
        answer
    }

    async fn exchange<T: FromRedisValue>(&self, request: Request<'_>) -> Result<T, Failure> {
        let mut exchange = Exchange::new(self);
        let mut answer = request.send(&exchange.manager).await;
        if answer.as_ref().is_err_and(connection_broke) {
            answer = request.send(&exchange.manager).await;
        }
        exchange.end = if answer.as_ref().is_err_and(connection_broke) {
            End::Broken
        } else {
            End::Answered
        };
        answer.map_err(Failure::from)
    }

    /// Checks that Redis answers.
    ///
    /// # Errors
    /// Fails if Redis did not answer.
    pub async fn ping(&self) -> StoreResult<()> {
        let ping = Request::from(redis::cmd("PING"));
        self.guard.ping(self.exchange(ping)).await
    }
}

/// Creates a manager that connects on first use and does not retry. Each caller makes one attempt,
/// because waiting for a series of attempts is useless while Redis is down.
fn connect_lazily(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0)
        .set_pipeline_buffer_size(PIPELINE_COMMANDS)
        // The guard enforces the deadline.
        .set_response_timeout(None);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

fn connection_broke(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error()
}

/// A request that can be sent more than once.
pub(super) enum Request<'a> {
    Command(Cmd),
    Pipeline(Pipeline),
    Script(ScriptInvocation<'a>),
}

impl From<Cmd> for Request<'_> {
    fn from(command: Cmd) -> Self {
        Self::Command(command)
    }
}

impl From<Pipeline> for Request<'_> {
    fn from(pipeline: Pipeline) -> Self {
        Self::Pipeline(pipeline)
    }
}

impl<'a> From<ScriptInvocation<'a>> for Request<'a> {
    fn from(script: ScriptInvocation<'a>) -> Self {
        Self::Script(script)
    }
}

impl Request<'_> {
    async fn send<T: FromRedisValue>(&self, manager: &ConnectionManager) -> RedisResult<T> {
        let mut connection = manager.clone();
        match self {
            Self::Command(command) => command.query_async(&mut connection).await,
            Self::Pipeline(pipeline) => pipeline.query_async(&mut connection).await,
            Self::Script(script) => script.invoke_async(&mut connection).await,
        }
    }
}

/// One caller's use of the connection. If the connection was unusable, the caller replaces it for
/// later callers. This is needed because a peer that disappears silently causes no error for many
/// minutes, and the manager does not reconnect after a handshake that was answered with garbage.
struct Exchange<'a> {
    redis: &'a Redis,
    manager: Arc<ConnectionManager>,
    began: Instant,
    end: End,
}

enum End {
    /// No answer yet; the caller's deadline may pass first.
    Waiting,
    Answered,
    Broken,
}

impl<'a> Exchange<'a> {
    fn new(redis: &'a Redis) -> Self {
        Self {
            redis,
            manager: redis.manager.load_full(),
            began: Instant::now(),
            end: End::Waiting,
        }
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        let unusable = match self.end {
            End::Answered => false,
            End::Broken => true,
            // A caller that hangs up early is no evidence of a broken connection.
            End::Waiting => self.began.elapsed() >= self.redis.timeout / 2,
        };
        if unusable && let Ok(fresh) = connect_lazily(&self.redis.client) {
            // If several callers shared the connection, only the first replaces it.
            self.redis
                .manager
                .compare_and_swap(&self.manager, Arc::new(fresh));
        }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        let refused = match error.kind() {
            // The library assigns transport errors a retry method meant for one node of a cluster,
            // so they are classified by kind.
            ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed => false,
            _ => {
                matches!(error.retry_method(), RetryMethod::NoRetry) && error.code() != Some("BUSY")
            }
        };
        Self {
            retryable: !refused,
            source: error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::ServerErrorKind;

    #[test]
    fn a_refusal_is_permanent_but_a_lost_connection_is_retryable() {
        let retryable = |error: RedisError| Failure::from(error).retryable;
        assert!(retryable(std::io::Error::other("no answer").into()));
        assert!(retryable((ErrorKind::Parse, "garbage").into()));
        let loading = ErrorKind::Server(ServerErrorKind::BusyLoading);
        assert!(retryable((loading, "loading").into()));
        let refused = ErrorKind::Server(ServerErrorKind::ResponseError);
        assert!(!retryable((refused, "no such command").into()));
        assert!(!retryable(
            (ErrorKind::UnexpectedReturnType, "not a number").into()
        ));
    }

    #[tokio::test]
    async fn an_invalid_url_is_refused_and_the_password_is_never_printed() {
        assert!(Redis::new("http://localhost").is_err());
        let redis = Redis::new("redis://:geheim@127.0.0.1:1/0");
        assert!(!format!("{redis:?}").contains("geheim"));
    }
}
