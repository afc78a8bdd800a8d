//! The ClickHouse adapter: candidates, aggregates, suggestions, exposures, and the tables that
//! events and change data capture fill. The schema and its reasons are in `clickhouse/*.sql`.
//!
//! Every value reaches a query as a server-side parameter. Every call goes through the store's
//! [`Guard`], and the server has the same time limit as the client.

mod candidates;
mod checksums;
mod coalesce;
mod community;
mod daily;
mod duplicates;
mod events;
mod imported;
mod migrate;
mod queries;
mod served;
mod shared_lists;
mod suggested;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;

pub use community::{CdcRow, CommentRow, FollowRow, LikeRow, PostRow, UserRow};
pub use events::{EventRow, PartitionRun};
pub use imported::ImportedEvent;

use super::breaker::Breaker;
use super::guard::{Failure, Guard};
use crate::ports::StoreResult;
use anyhow::Context as _;
use clickhouse::error::Error;
use clickhouse::{Client, Compression, RowOwned, RowWrite};
use nova_model::time::{DAY_MS, HOUR_MS, UnixMs};
use queries::LookupQueues;
use shared_lists::SharedLists;
use std::time::Duration;

/// The name used in `degraded`, `/health` and metrics.
pub const STORE_NAME: &str = "clickhouse";
/// Name of the worker's breaker in metrics.
const WORK_CIRCUIT: &str = "clickhouse_writes";
const SUGGESTIONS_CIRCUIT: &str = "clickhouse_suggestions";

const DEFAULT_DATABASE: &str = "nova";

/// Longest time that a feed request may wait for any one query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit for suggestions. They are computed in advance for active viewers and cached
/// for minutes. With ten million follows, a viewer with popular followees takes half a
/// second of an idle core.
const SUGGESTIONS_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for inserts and reports; no viewer waits for them.
const WORK_TIMEOUT: Duration = Duration::from_secs(30);

/// The setting that lets a long query of the reader use all cores again.
const ALL_THREADS: (&str, &str) = ("max_threads", "0");

/// Time window of counters and affinities.
const AGGREGATE_WINDOW_MS: u64 = 90 * DAY_MS;
/// Maximum age of a post in any source.
const POST_WINDOW_MS: u64 = AGGREGATE_WINDOW_MS;

/// A connection to ClickHouse. Clones share its sockets, breakers, shared lists and
/// queues of waiting callers.
#[derive(Clone)]
pub struct ClickHouseStore {
    /// Client for queries that viewers wait for.
    reader: Client,
    /// Client for inserts, reports and the schema.
    worker: Client,
    database: String,
    guard: Guard,
    /// Guard of the worker. Queries that viewers wait for and work that they do not wait for fail
    /// independently: a successful insert says nothing about late reads, and failing inserts into
    /// a full disk are no reason to stop reading.
    work_guard: Guard,
    /// Guard of suggestions, the most expensive query: a list that takes too long for one viewer
    /// says nothing about feeds.
    suggestions_guard: Guard,
    lists: SharedLists,
    lookups: LookupQueues,
}

impl std::fmt::Debug for ClickHouseStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClickHouseStore").finish_non_exhaustive()
    }
}

impl ClickHouseStore {
    /// Creates the client without contacting the server. `url` has the form
    /// `http://user:password@host:8123/database`.
    ///
    /// # Errors
    /// Fails if the URL is invalid or is not `http`.
    pub fn connect(url: &str) -> anyhow::Result<Self> {
        let url = reqwest::Url::parse(url).context(
            "CLICKHOUSE_URL is not a URL; expected http://user:password@host:8123/database",
        )?;
        anyhow::ensure!(
            url.scheme() == "http",
            "CLICKHOUSE_URL begins with {}://, but only http:// is supported",
            url.scheme()
        );
        let database = match url.path().trim_matches('/') {
            "" => DEFAULT_DATABASE,
            named => named,
        };
        let client = client_of(&url)?
            .with_database(database)
            // This is safe because a table's partition depends only on columns of its key;
            // see 0001_community.sql.
            .with_setting("do_not_merge_across_partitions_select_final", "1");
        Ok(Self {
            reader: with_time_limit(&client, QUERY_TIMEOUT)
                .with_setting("cancel_http_readonly_queries_on_client_close", "1")
                // A feed's queries read a few thousand rows each, and many run at once. A
                // second thread makes a single query a little faster but makes all of
                // them cost a third more.
                .with_setting("max_threads", "1"),
            worker: with_time_limit(&client, WORK_TIMEOUT),
            database: database.to_owned(),
            guard: Guard::new(STORE_NAME, QUERY_TIMEOUT),
            work_guard: Guard::for_some(STORE_NAME, WORK_CIRCUIT, WORK_TIMEOUT, Breaker::default()),
            suggestions_guard: Guard::for_some(
                STORE_NAME,
                SUGGESTIONS_CIRCUIT,
                SUGGESTIONS_TIMEOUT,
                Breaker::default(),
            ),
            lists: SharedLists::default(),
            lookups: LookupQueues::default(),
        })
    }

    /// Returns the store with circuit breakers like `breaker` instead of the default ones.
    #[must_use]
    pub fn with_breaker(self, breaker: Breaker) -> Self {
        Self {
            guard: self.guard.with_new_breaker(breaker.clone()),
            suggestions_guard: self.suggestions_guard.with_new_breaker(breaker.clone()),
            work_guard: self.work_guard.with_new_breaker(breaker),
            ..self
        }
    }

    /// The guard around every call that viewers wait for.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    async fn answers(&self) -> StoreResult<()> {
        let query = self.reader.query("SELECT 1");
        let answer = async { query.fetch_one::<u8>().await.map_err(failure) };
        self.guard.ping(answer).await.map(drop)
    }

    /// Inserts rows as one block, or fails. Repeating the call with the same token
    /// inserts nothing twice.
    async fn insert<R>(&self, table: &str, rows: &[R], token: Option<&str>) -> Result<(), Failure>
    where
        R: RowOwned + RowWrite + Sync,
    {
        if rows.is_empty() {
            return Ok(());
        }
        // These settings override the server's profile. A queued insert is not stored yet, and
        // materialized views deduplicate only if told to. History covers more days, and so more
        // partitions, than a batch of live events.
        let mut insert = (self.worker.insert::<R>(table).await)
            .map_err(failure)?
            .with_setting("async_insert", "0")
            .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1")
            .with_setting("max_partitions_per_insert_block", "0");
        if let Some(token) = token {
            insert = insert.with_setting("insert_deduplication_token", token);
        }
        for row in rows {
            insert.write(row).await.map_err(failure)?;
        }
        insert.end().await.map_err(failure)
    }
}

fn client_of(url: &reqwest::Url) -> anyhow::Result<Client> {
    let mut base = url.clone();
    base.set_path("/");
    base.set_query(None);
    // Cannot fail for http. Credentials are sent in headers instead.
    let _ = base.set_username("");
    let _ = base.set_password(None);
    let mut client = Client::default()
        .with_url(base.as_str())
        .with_compression(Compression::None);
    let decode = |text: &str| {
        let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
        decoded
            .map(String::from)
            .context("the credentials in CLICKHOUSE_URL are not UTF-8")
    };
    if !url.username().is_empty() {
        client = client.with_user(decode(url.username())?);
    }
    if let Some(password) = url.password() {
        client = client.with_password(decode(password)?);
    }
    Ok(client)
}

/// Sets the server's time limit to the client's, so that both give up at the same time.
fn with_time_limit(client: &Client, limit: Duration) -> Client {
    let client = client.clone();
    client.with_setting("max_execution_time", limit.as_secs().to_string())
}

/// ClickHouse's error codes after which the same call may succeed later: limits of time,
/// memory, threads, connections, parts and disk, a read-only replica, a query that was killed.
const RETRYABLE_CODES: [u32; 15] = [
    159, 160, 164, 202, 203, 209, 210, 241, 242, 243, 252, 319, 394, 425, 439,
];

/// Classifies an error. An error code means that ClickHouse itself refused the call. Any
/// other error is a broken connection or a server that does not speak ClickHouse, so the
/// store counts as down.
fn failure(error: Error) -> Failure {
    let refused = match &error {
        Error::BadResponse(text) => {
            code_of(text).is_some_and(|code| !RETRYABLE_CODES.contains(&code))
        }
        Error::InvalidParams(_) | Error::RowNotFound | Error::SchemaMismatch(_) => true,
        _ => false,
    };
    Failure {
        retryable: !refused,
        source: error.into(),
    }
}

/// Parses the number in `Code: 60. DB::Exception: …`.
fn code_of(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("Code: ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Converts to `DateTime64` milliseconds, which ClickHouse counts in an `Int64`.
fn to_ticks(at_ms: UnixMs) -> i64 {
    i64::try_from(at_ms).unwrap_or(i64::MAX)
}

/// Converts from `DateTime64` milliseconds. Times before 1970 do not occur here.
fn from_ticks(ticks: i64) -> UnixMs {
    UnixMs::try_from(ticks).unwrap_or(0)
}

/// The start of the hour that contains `at_ms`, in seconds, as `DateTime` counts them.
fn hour_of(at_ms: UnixMs) -> u32 {
    u32::try_from(at_ms / HOUR_MS * (HOUR_MS / 1000)).unwrap_or(u32::MAX)
}

/// The first hourly bucket of the 90-day window.
fn first_hour_of_window(now_ms: UnixMs) -> u32 {
    hour_of(now_ms.saturating_sub(AGGREGATE_WINDOW_MS))
}

/// The first daily bucket of the 90-day window, in days, as `Date` counts them.
fn first_day_of_window(now_ms: UnixMs) -> u16 {
    u16::try_from(now_ms.saturating_sub(AGGREGATE_WINDOW_MS) / DAY_MS).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn only_an_error_with_a_permanent_code_is_not_retryable() {
        let retryable = |text: &str| failure(Error::BadResponse(text.to_owned())).retryable;
        assert!(!retryable(
            "Code: 60. DB::Exception: Table nova.posts does not exist"
        ));
        assert!(retryable("Code: 241. DB::Exception: Memory limit exceeded"));
        assert!(retryable("<html>502 Bad Gateway</html>"));
        assert!(failure(Error::TimedOut).retryable);
        assert!(failure(Error::NotEnoughData).retryable);
    }

    #[test]
    fn the_database_is_taken_from_the_url_and_https_is_refused() -> anyhow::Result<()> {
        let store = ClickHouseStore::connect("http://nova:p%40ss@localhost:8123/feeds")?;
        assert_eq!(store.database, "feeds");
        assert_eq!(
            ClickHouseStore::connect("http://localhost:8123")?.database,
            "nova"
        );
        assert!(ClickHouseStore::connect("https://localhost:8443").is_err());
        Ok(())
    }
}
