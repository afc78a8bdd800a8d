//! Configuration: `nova.toml`, each key overridable by an environment variable.
//!
//! Every field says its unit and default. `Live` is the part that may change while the host runs;
//! whatever else changes in the file is reported and waits for a restart.

use crate::policy::budget::{Thresholds, WINDOW_MAX_S};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address to listen on. Default 127.0.0.1:8080; `HTTP_PORT` changes the port alone.
    pub listen: SocketAddr,
    /// Where everything durable lives. Needs a volume that outlives the process. Default ./nova-data.
    pub data_dir: PathBuf,
    /// Directory to watch for policies. Default: `policies` in the data directory.
    pub policies_dir: Option<PathBuf>,
    /// Threads for policies. Default 0: one for each core.
    pub worker_concurrency: usize,
    /// `json` or `text`. Default json.
    pub log_format: LogFormat,
    pub stores: Stores,
    pub auth: Auth,
    pub server: Server,
    pub policy: PolicyTrust,
    /// Bytes of accepted events that may wait to be counted. Default 1 GiB.
    pub spool_bytes_max: u64,
    /// Memory for snapshots and for cached candidates, MiB each. Default 256.
    pub cache_mb: u64,
    #[serde(flatten)]
    pub live: Live,
}

/// What reloads while the host runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Live {
    /// A `tracing` filter: `info`, `nova=debug,warn`, … Default info.
    pub log_level: String,
    pub ttl: Ttl,
    pub limits: Limits,
    pub feed: Feed,
    pub failure_budget: FailureBudget,
    pub records: Records,
    pub shadow: Shadow,
    pub flags: Flags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Json,
    Text,
}

/// URLs of the real stack: all four, or none for the embedded stores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stores {
    pub postgres_url: Option<String>,
    pub clickhouse_url: Option<String>,
    pub kafka_brokers: Option<String>,
    pub redis_url: Option<String>,
    /// Connections to PostgreSQL at most. Default 16.
    pub postgres_connections_max: u32,
    /// How long a store that failed three times in a row is left alone before it is asked once more, ms. Default 30,000.
    pub circuit_open_ms: u64,
    /// Whether hosts move events from Kafka into ClickHouse; not where ClickHouse's own Kafka engine does. Default true.
    pub consume_events: bool,
    /// Before the name of every topic and consumer group, so that two Novas can share a broker. Default empty.
    pub kafka_prefix: String,
}

/// Where the real stack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackUrls<'a> {
    pub postgres: &'a str,
    pub clickhouse: &'a str,
    pub kafka: &'a str,
    pub redis: &'a str,
}

impl Stores {
    /// `None` for the embedded stores.
    pub fn stack(&self) -> Option<StackUrls<'_>> {
        Some(StackUrls {
            postgres: self.postgres_url.as_deref()?,
            clickhouse: self.clickhouse_url.as_deref()?,
            kafka: self.kafka_brokers.as_deref()?,
            redis: self.redis_url.as_deref()?,
        })
    }
}

impl Default for Stores {
    fn default() -> Self {
        Self {
            postgres_url: None,
            clickhouse_url: None,
            kafka_brokers: None,
            redis_url: None,
            postgres_connections_max: 16,
            circuit_open_ms: 30_000,
            consume_events: true,
            kafka_prefix: String::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// HS256 key, at least 32 bytes, shared by all hosts. Default: a random one, kept in the data directory.
    pub jwt_secret: Option<String>,
    /// Required `iss`. Default nova.
    pub issuer: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Open connections. Default 10,000.
    pub connections_max: usize,
    /// Time for a client to send its headers, ms. Default 10,000.
    pub header_timeout_ms: u64,
    /// Longest pause while a client sends its body, ms. Default 10,000.
    pub body_timeout_ms: u64,
    /// Time for requests in flight when the host stops, ms. Default 10,000.
    pub shutdown_timeout_ms: u64,
    /// Origins that browsers may call from. Default none.
    pub cors_origins: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyTrust {
    /// minisign public keys in base64; when there are any, only policies signed with one of them are
    /// published and loaded. Default none.
    pub trusted_keys: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ttl {
    /// How old cached candidates may be, s. Default 120.
    pub candidates_s: u64,
    /// How old a snapshot may be to be served again, s. Default 120.
    pub snapshot_s: u64,
    /// How old a trending list may be, s. Default 60.
    pub trending_s: u64,
    /// How old suggestions may be, s. Default 600.
    pub suggestions_s: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// `off` switches rate limits off, for load tests. Default on.
    pub rate_limit: Switch,
    /// Requests of one viewer a minute, events excepted. Default 300.
    pub viewer_requests_per_minute: u32,
    /// Event batches of one viewer a minute. Default 600.
    pub viewer_event_batches_per_minute: u32,
    /// Requests of one address a minute on open routes. Default 120.
    pub address_requests_per_minute: u32,
    /// Body of a request, bytes. Default 1 MiB.
    pub body_bytes_max: usize,
    /// Body of a policy upload, bytes. Default 64 MiB.
    pub upload_bytes_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Feed {
    /// Time of one candidate source, ms. Default 2,000.
    pub source_timeout_ms: u64,
    /// Time of the timeline fallback, ms. Default 500.
    pub timeline_timeout_ms: u64,
    /// Time that all policies of one request may use together, ms. Default 250.
    pub policy_budget_ms: u64,
}

/// When a policy is taken out of service by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailureBudget {
    /// Fewer failures in the window never do it. Default 5.
    pub min_failures: u32,
    /// Share of the window's calls that must have failed, above 0 and at most 1. Default 0.05.
    pub ratio: f64,
    /// How far back is counted, s, at most 600. Default 30: a policy that fails always is out after 1.5 s,
    /// however many good calls went before.
    pub window_s: u64,
    /// A canary or variation goes when its p99 is this many times the active policy's and a quarter of its own
    /// deadline. Default 3; 0 switches it off.
    pub p99_factor: f64,
    /// Calls that both need for that. Default 200.
    pub p99_min_calls: u32,
}

impl FailureBudget {
    pub fn thresholds(&self) -> Thresholds {
        Thresholds {
            min_failures: self.min_failures,
            ratio: self.ratio,
            window_s: self.window_s,
            p99_factor: self.p99_factor,
            p99_min_calls: self.p99_min_calls,
        }
    }

    fn check(&self) -> Result<(), String> {
        let checks = [
            (self.min_failures >= 1, "min_failures: must be at least 1"),
            (
                self.ratio > 0.0 && self.ratio <= 1.0,
                "ratio: must be above 0 and at most 1",
            ),
            (
                (1..=WINDOW_MAX_S).contains(&self.window_s),
                "window_s: must be within 1 … 600",
            ),
            (
                self.p99_factor == 0.0 || self.p99_factor >= 1.0,
                "p99_factor: must be at least 1, or 0 for never",
            ),
            (self.p99_min_calls >= 1, "p99_min_calls: must be at least 1"),
        ];
        match checks.iter().find(|(ok, _)| !ok) {
            None => Ok(()),
            Some((_, reason)) => Err(format!("failure_budget.{reason}")),
        }
    }
}

impl Default for FailureBudget {
    fn default() -> Self {
        Self {
            min_failures: 5,
            ratio: 0.05,
            window_s: 30,
            p99_factor: 3.0,
            p99_min_calls: 200,
        }
    }
}

/// Rankings that are stored whole, to be replayed. A ranking whose policy failed is always one of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Records {
    /// Share of rankings, 0 to 1. Default 0.01.
    pub sample_ratio: f64,
    /// Viewers whose rankings are all recorded, by id. Default none.
    pub viewers: BTreeSet<u64>,
    /// Bytes of records and the modules they need; the oldest records go first. Default 256 MiB.
    pub bytes_max: u64,
    /// How long a record is kept, h: it says what a viewer was shown. Default 168.
    pub age_max_h: u64,
}

/// Policies that rank beside the one that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shadow {
    /// Processor time for all of them together, % of one core, 0 to 100. Default 25; at 0 none runs.
    pub cpu_percent: u32,
}

impl Default for Shadow {
    fn default() -> Self {
        Self { cpu_percent: 25 }
    }
}

/// Defaults of the flags; an operator's `PUT /admin/v1/flags/{name}` beats them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flags {
    /// `false`: `algo=ch` is answered with the timeline. Default true.
    pub use_ch_ranking: bool,
    /// `false`: every feed is ranked anew. Default true.
    pub enable_caching: bool,
    /// `false`: no timeline when nothing else can be served, but a 503. Default true.
    pub enable_fallback: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            data_dir: PathBuf::from("nova-data"),
            policies_dir: None,
            worker_concurrency: 0,
            log_format: LogFormat::Json,
            stores: Stores::default(),
            auth: Auth {
                jwt_secret: None,
                issuer: "nova".to_owned(),
            },
            server: Server::default(),
            policy: PolicyTrust::default(),
            spool_bytes_max: 1 << 30,
            cache_mb: 256,
            live: Live::default(),
        }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Config::default().auth
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            header_timeout_ms: 10_000,
            body_timeout_ms: 10_000,
            shutdown_timeout_ms: 10_000,
            cors_origins: Vec::new(),
        }
    }
}

impl Default for Live {
    fn default() -> Self {
        Self {
            log_level: "info".to_owned(),
            ttl: Ttl::default(),
            limits: Limits::default(),
            feed: Feed::default(),
            failure_budget: FailureBudget::default(),
            records: Records::default(),
            shadow: Shadow::default(),
            flags: Flags::default(),
        }
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self {
            candidates_s: 120,
            snapshot_s: 120,
            trending_s: 60,
            suggestions_s: 600,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rate_limit: Switch::On,
            viewer_requests_per_minute: 300,
            viewer_event_batches_per_minute: 600,
            address_requests_per_minute: 120,
            body_bytes_max: 1 << 20,
            upload_bytes_max: 64 << 20,
        }
    }
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            source_timeout_ms: 2_000,
            timeline_timeout_ms: 500,
            policy_budget_ms: 250,
        }
    }
}

impl Default for Records {
    fn default() -> Self {
        Self {
            sample_ratio: 0.01,
            viewers: BTreeSet::new(),
            bytes_max: 256 << 20,
            age_max_h: 168,
        }
    }
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            use_ch_ranking: true,
            enable_caching: true,
            enable_fallback: true,
        }
    }
}

impl Flags {
    pub const NAMES: [&str; 3] = ["use_ch_ranking", "enable_caching", "enable_fallback"];

    pub fn get(&self, name: &str) -> Option<bool> {
        match name {
            "use_ch_ranking" => Some(self.use_ch_ranking),
            "enable_caching" => Some(self.enable_caching),
            "enable_fallback" => Some(self.enable_fallback),
            _ => None,
        }
    }

    /// A name nobody knows changes nothing: it may come from a newer host.
    pub fn set(&mut self, name: &str, enabled: bool) {
        match name {
            "use_ch_ranking" => self.use_ch_ranking = enabled,
            "enable_caching" => self.enable_caching = enabled,
            "enable_fallback" => self.enable_fallback = enabled,
            _ => {}
        }
    }
}

impl Ttl {
    pub fn candidates(&self) -> Duration {
        Duration::from_secs(self.candidates_s)
    }

    pub fn snapshot(&self) -> Duration {
        Duration::from_secs(self.snapshot_s)
    }
}

/// Environment variables and the keys they override. `.env.example` lists the same, and a test holds it to that.
pub const VARIABLES: &[(&str, &str)] = &[
    ("NOVA_LISTEN", "listen"),
    ("NOVA_DATA_DIR", "data_dir"),
    ("NOVA_POLICIES_DIR", "policies_dir"),
    ("WORKER_CONCURRENCY", "worker_concurrency"),
    ("LOG_LEVEL", "log_level"),
    ("NOVA_LOG_FORMAT", "log_format"),
    ("POSTGRES_URL", "stores.postgres_url"),
    ("CLICKHOUSE_URL", "stores.clickhouse_url"),
    ("KAFKA_BROKERS", "stores.kafka_brokers"),
    ("REDIS_URL", "stores.redis_url"),
    (
        "NOVA_POSTGRES_CONNECTIONS_MAX",
        "stores.postgres_connections_max",
    ),
    ("NOVA_CIRCUIT_OPEN_MS", "stores.circuit_open_ms"),
    ("NOVA_CONSUME_EVENTS", "stores.consume_events"),
    ("NOVA_KAFKA_PREFIX", "stores.kafka_prefix"),
    ("NOVA_JWT_SECRET", "auth.jwt_secret"),
    ("NOVA_JWT_ISSUER", "auth.issuer"),
    ("NOVA_CONNECTIONS_MAX", "server.connections_max"),
    ("NOVA_HEADER_TIMEOUT_MS", "server.header_timeout_ms"),
    ("NOVA_BODY_TIMEOUT_MS", "server.body_timeout_ms"),
    ("NOVA_SHUTDOWN_TIMEOUT_MS", "server.shutdown_timeout_ms"),
    ("NOVA_CORS_ORIGINS", "server.cors_origins"),
    ("NOVA_POLICY_TRUSTED_KEYS", "policy.trusted_keys"),
    ("NOVA_SPOOL_BYTES_MAX", "spool_bytes_max"),
    ("NOVA_CACHE_MB", "cache_mb"),
    ("NOVA_CANDIDATES_TTL_S", "ttl.candidates_s"),
    ("NOVA_SNAPSHOT_TTL_S", "ttl.snapshot_s"),
    ("NOVA_TRENDING_TTL_S", "ttl.trending_s"),
    ("NOVA_SUGGESTIONS_TTL_S", "ttl.suggestions_s"),
    ("NOVA_RATE_LIMIT", "limits.rate_limit"),
    (
        "NOVA_VIEWER_REQUESTS_PER_MINUTE",
        "limits.viewer_requests_per_minute",
    ),
    (
        "NOVA_VIEWER_EVENT_BATCHES_PER_MINUTE",
        "limits.viewer_event_batches_per_minute",
    ),
    (
        "NOVA_ADDRESS_REQUESTS_PER_MINUTE",
        "limits.address_requests_per_minute",
    ),
    ("NOVA_BODY_BYTES_MAX", "limits.body_bytes_max"),
    ("NOVA_UPLOAD_BYTES_MAX", "limits.upload_bytes_max"),
    ("NOVA_SOURCE_TIMEOUT_MS", "feed.source_timeout_ms"),
    ("NOVA_TIMELINE_TIMEOUT_MS", "feed.timeline_timeout_ms"),
    ("NOVA_POLICY_BUDGET_MS", "feed.policy_budget_ms"),
    (
        "NOVA_FAILURE_BUDGET_MIN_FAILURES",
        "failure_budget.min_failures",
    ),
    ("NOVA_FAILURE_BUDGET_RATIO", "failure_budget.ratio"),
    ("NOVA_FAILURE_BUDGET_WINDOW_S", "failure_budget.window_s"),
    (
        "NOVA_FAILURE_BUDGET_P99_FACTOR",
        "failure_budget.p99_factor",
    ),
    (
        "NOVA_FAILURE_BUDGET_P99_MIN_CALLS",
        "failure_budget.p99_min_calls",
    ),
    ("NOVA_RECORD_SAMPLE_RATIO", "records.sample_ratio"),
    ("NOVA_RECORD_VIEWERS", "records.viewers"),
    ("NOVA_RECORD_BYTES_MAX", "records.bytes_max"),
    ("NOVA_RECORD_AGE_MAX_H", "records.age_max_h"),
    ("NOVA_SHADOW_CPU_PERCENT", "shadow.cpu_percent"),
    ("NOVA_USE_CH_RANKING", "flags.use_ch_ranking"),
    ("NOVA_ENABLE_CACHING", "flags.enable_caching"),
    ("NOVA_ENABLE_FALLBACK", "flags.enable_fallback"),
];

/// Changes the port of `listen` alone.
pub const PORT_VARIABLE: &str = "HTTP_PORT";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("configuration: {0}")]
    Invalid(String),
}

impl Config {
    /// Reads the file, if there is one, and lays the environment over it.
    ///
    /// # Errors
    /// An unreadable file, an unknown key, a value of the wrong kind, some store URLs without the others.
    pub fn load(
        path: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let text = match path {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?,
        };
        Self::parse(&text, variable)
    }

    fn parse(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut table: toml::Table =
            toml::from_str(text).map_err(|error| ConfigError::Invalid(with_line(text, &error)))?;
        refuse_unknown_keys(&table)?;
        for (name, key) in VARIABLES {
            if let Some(value) = variable(name).filter(|value| !value.is_empty()) {
                set(&mut table, key, read_value(key, &value));
            }
        }
        let mut config: Config = table
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| ConfigError::Invalid(with_key(&table, &error)))?;
        if let Some(port) = variable(PORT_VARIABLE).filter(|port| !port.is_empty()) {
            let port = port.parse().map_err(|_| {
                ConfigError::Invalid(format!("{PORT_VARIABLE}: `{port}` is not a port"))
            })?;
            config.listen.set_port(port);
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |reason: String| Err(ConfigError::Invalid(reason));
        let urls = [
            ("POSTGRES_URL", &self.stores.postgres_url),
            ("CLICKHOUSE_URL", &self.stores.clickhouse_url),
            ("KAFKA_BROKERS", &self.stores.kafka_brokers),
            ("REDIS_URL", &self.stores.redis_url),
        ];
        let missing: Vec<&str> = urls
            .iter()
            .filter(|(_, url)| url.is_none())
            .map(|(name, _)| *name)
            .collect();
        if !missing.is_empty() && missing.len() < urls.len() {
            return refuse(format!(
                "some store URLs are set and {} missing: set all four, or none to run embedded",
                missing.join(", ")
            ));
        }
        if let Some(secret) = &self.auth.jwt_secret
            && secret.len() < 32
        {
            return refuse("auth.jwt_secret: use at least 32 bytes".into());
        }
        if tracing_subscriber::EnvFilter::try_new(&self.live.log_level).is_err() {
            return refuse(format!(
                "log_level: `{}` is not a filter such as info or nova=debug",
                self.live.log_level
            ));
        }
        let ratio = self.live.records.sample_ratio;
        if !(0.0..=1.0).contains(&ratio) {
            return refuse(format!("records.sample_ratio: {ratio} is not within 0 … 1"));
        }
        let percent = self.live.shadow.cpu_percent;
        if percent > 100 {
            return refuse(format!(
                "shadow.cpu_percent: {percent} is not within 0 … 100"
            ));
        }
        let limits = &self.live.limits;
        let rates = [
            (
                "viewer_requests_per_minute",
                limits.viewer_requests_per_minute,
            ),
            (
                "viewer_event_batches_per_minute",
                limits.viewer_event_batches_per_minute,
            ),
            (
                "address_requests_per_minute",
                limits.address_requests_per_minute,
            ),
        ];
        if let Some((name, _)) = rates.iter().find(|(_, rate)| *rate == 0) {
            return refuse(format!("limits.{name}: must be at least 1"));
        }
        self.live.failure_budget.check().or_else(refuse)
    }

    pub fn policies_dir(&self) -> PathBuf {
        self.policies_dir
            .clone()
            .unwrap_or_else(|| self.data_dir.join("policies"))
    }

    pub fn worker_threads(&self) -> usize {
        match self.worker_concurrency {
            0 => std::thread::available_parallelism().map_or(2, usize::from),
            threads => threads,
        }
    }
}

/// `#[serde(flatten)]` and `deny_unknown_fields` do not go together, so the top level is checked here.
fn refuse_unknown_keys(table: &toml::Table) -> Result<(), ConfigError> {
    let known = |key: &str| {
        VARIABLES
            .iter()
            .any(|(_, path)| path.split('.').next() == Some(key))
    };
    match table.keys().find(|key| !known(key)) {
        None => Ok(()),
        Some(key) => Err(ConfigError::Invalid(format!("unknown key `{key}`"))),
    }
}

/// The parser's own text draws the place over several lines; an error here has one.
fn with_line(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = 1 + before.unwrap_or_default().matches('\n').count();
    format!("line {line}: {}", error.message())
}

/// The error of a merged table knows no place. Every key has a default, so the wrong one is the
/// one that is refused alone.
fn with_key(table: &toml::Table, error: &toml::de::Error) -> String {
    let alone = |key: &str, value: &toml::Value| {
        let mut table = toml::Table::new();
        set(&mut table, key, value.clone());
        table.try_into::<Config>().err()
    };
    let mut keys = table.iter().flat_map(|(name, value)| match value {
        toml::Value::Table(section) => section
            .iter()
            .map(|(key, value)| (format!("{name}.{key}"), value))
            .collect(),
        value => vec![(name.clone(), value)],
    });
    let wrong = keys.find_map(|(key, value)| {
        let error = alone(&key, value)?;
        Some(format!("{key}: {}", error.message()))
    });
    wrong.unwrap_or_else(|| error.message().to_owned())
}

/// Environment variables are text; the key's type decides what is meant.
fn read_value(key: &str, text: &str) -> toml::Value {
    if [
        "server.cors_origins",
        "policy.trusted_keys",
        "records.viewers",
    ]
    .contains(&key)
    {
        let entry = |entry: &str| match entry.parse() {
            Ok(id) if key == "records.viewers" => toml::Value::Integer(id),
            _ => toml::Value::String(entry.to_owned()),
        };
        return toml::Value::Array(text.split(',').map(str::trim).map(entry).collect());
    }
    // An integer or a boolean where the text is one; secrets and names stay text.
    let literal = !key.starts_with("auth.")
        && !key.ends_with("_url")
        && !key.ends_with("_dir")
        && !["stores.kafka_brokers", "stores.kafka_prefix"].contains(&key);
    if (key.starts_with("failure_budget.") || key == "records.sample_ratio")
        && let Ok(number) = text.parse::<f64>()
        && text.contains('.')
    {
        return toml::Value::Float(number);
    }
    match (literal, text.parse::<i64>(), text.parse::<bool>()) {
        (true, Ok(number), _) => toml::Value::Integer(number),
        (true, _, Ok(flag)) => toml::Value::Boolean(flag),
        _ => toml::Value::String(text.to_owned()),
    }
}

fn set(table: &mut toml::Table, key: &str, value: toml::Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, key)) => {
            let section = table
                .entry(section)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(section) = section {
                set(section, key, value);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables: Vec<(String, String)> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Config::parse(text, |name| {
            variables
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, value)| value.clone())
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_gives_the_documented_defaults() {
        assert_eq!(parse("", &[]).unwrap(), Config::default());
    }

    #[test]
    fn unknown_keys_are_refused_at_every_level() {
        for text in [
            "listn = \"x\"",
            "[ttl]\nsnapshots = 3",
            "[limits]\nx = 1",
            "[flags]\nuse_ch = true",
            "[auth]\nkey = \"\"",
        ] {
            let error = parse(text, &[]).unwrap_err();
            assert!(error.contains("unknown"), "{text}: {error}");
        }
    }

    #[test]
    fn some_store_urls_name_the_missing_ones() {
        let error = parse(
            "",
            &[("REDIS_URL", "redis://x"), ("POSTGRES_URL", "postgres://x")],
        )
        .unwrap_err();
        assert!(
            error.contains("CLICKHOUSE_URL, KAFKA_BROKERS missing"),
            "{error}"
        );
    }

    #[test]
    fn the_environment_beats_the_file() {
        let variables = [
            ("HTTP_PORT", "9"),
            ("NOVA_SNAPSHOT_TTL_S", "7"),
            ("NOVA_RATE_LIMIT", "off"),
            ("NOVA_RECORD_SAMPLE_RATIO", "1"),
            ("NOVA_RECORD_VIEWERS", "7, 42"),
            ("NOVA_ENABLE_CACHING", "false"),
            ("NOVA_CORS_ORIGINS", "https://a.example, https://b.example"),
        ];
        let config = parse("[ttl]\nsnapshot_s = 3\ncandidates_s = 4", &variables).unwrap();
        assert_eq!(
            (
                config.listen.port(),
                config.live.ttl.snapshot_s,
                config.live.ttl.candidates_s
            ),
            (9, 7, 4)
        );
        assert_eq!(
            (
                config.live.limits.rate_limit,
                config.live.flags.enable_caching
            ),
            (Switch::Off, false)
        );
        assert_eq!(config.live.records.sample_ratio, 1.0);
        assert!(config.live.records.viewers.iter().eq(&[7, 42]));
        assert_eq!(
            config.server.cors_origins,
            ["https://a.example", "https://b.example"]
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused() {
        for variable in [
            ("HTTP_PORT", "http"),
            ("NOVA_SNAPSHOT_TTL_S", "soon"),
            ("NOVA_RATE_LIMIT", "maybe"),
            ("NOVA_RECORD_SAMPLE_RATIO", "1.5"),
            ("NOVA_SHADOW_CPU_PERCENT", "101"),
            ("NOVA_RECORD_VIEWERS", "7,ada"),
            ("LOG_LEVEL", "=="),
            ("NOVA_JWT_SECRET", "short"),
        ] {
            assert!(parse("", &[variable]).is_err(), "{variable:?}");
        }
    }

    #[test]
    fn failure_budgets_take_whole_numbers_and_fractions_and_refuse_what_makes_no_sense() {
        let variables = [
            ("NOVA_FAILURE_BUDGET_RATIO", "0.1"),
            ("NOVA_FAILURE_BUDGET_P99_FACTOR", "2"),
        ];
        let budget = parse("", &variables).unwrap().live.failure_budget;
        assert_eq!((budget.ratio, budget.p99_factor), (0.1, 2.0));
        for text in [
            "ratio = 0",
            "window_s = 601",
            "min_failures = 0",
            "p99_factor = 0.5",
        ] {
            let error = parse(&format!("[failure_budget]\n{text}"), &[]).unwrap_err();
            let (key, _) = text.split_once(' ').unwrap();
            assert!(error.contains(&format!("failure_budget.{key}")), "{error}");
        }
    }

    #[test]
    fn the_example_file_lists_every_variable() {
        let example = include_str!("../../.env.example");
        for name in VARIABLES
            .iter()
            .map(|(name, _)| *name)
            .chain([PORT_VARIABLE])
        {
            assert!(
                example
                    .lines()
                    .any(|line| line.starts_with(&format!("# {name}="))),
                "{name} is not in .env.example"
            );
        }
        let listed = example
            .lines()
            .filter_map(|line| line.strip_prefix("# ")?.split_once('='))
            .map(|(name, _)| name);
        for name in listed.filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_')) {
            let client = ["NOVA_HOST", "NOVA_TOKEN"].contains(&name);
            assert!(
                client || name == PORT_VARIABLE || VARIABLES.iter().any(|(n, _)| *n == name),
                "{name} is not a variable"
            );
        }
    }
}
