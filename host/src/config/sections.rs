//! Sections of the configuration, with their defaults.

use super::Config;
use anyhow::Context as _;
use nova_model::budget::Thresholds;
use nova_model::prune::Quotas;
use nova_policy::worker::WorkerLimits;
use nova_stores::StackUrls;
use nova_support::key_file;
use nova_support::secret_key::SecretKey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Json,
    Text,
}

/// URLs of the real stack: all four, or none to use the embedded stores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stores {
    pub postgres_url: Option<String>,
    pub clickhouse_url: Option<String>,
    pub kafka_brokers: Option<String>,
    pub redis_url: Option<String>,
    /// Largest number of connections to PostgreSQL. Default 16.
    pub postgres_connections_max: u32,
    /// Time for which the circuit breaker stays open after a store failed three times in a row,
    /// in ms. Then one call tries the store again. Default 30,000.
    pub circuit_open_ms: u64,
    /// Set if hosts move events from Kafka into ClickHouse. Switch it off if ClickHouse's own
    /// Kafka engine does that. Default true.
    pub consume_events: bool,
    /// Prefix of the names of all topics and consumer groups, so that two Nova installations can
    /// share a broker. Default empty.
    pub kafka_prefix: String,
}

impl Stores {
    /// Returns the URLs of the real stack, or `None` for the embedded stores.
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

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// HS256 key of at least 32 random bytes, shared by all hosts. Default: a random key, kept in
    /// the data directory.
    pub jwt_secret: Option<String>,
    /// Required `iss` of tokens. Default nova.
    pub issuer: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Largest number of open connections. Default 10,000.
    pub connections_max: usize,
    /// Time limit for a client to send its headers, from their first byte, in ms. A new connection
    /// has this time for its first request. Default 10,000.
    pub header_timeout_ms: u64,
    /// Time for which a connection may stay open between requests, in ms. It should be longer
    /// than that of a load balancer in front of the host. Default 75,000.
    pub idle_timeout_ms: u64,
    /// Longest pause while a client sends its body, in ms. Default 10,000.
    pub body_timeout_ms: u64,
    /// Time for which a host that gets SIGTERM is not ready but still serves, in ms. Load balancers
    /// notice in this time that it is about to stop. Default 5,000.
    pub drain_ms: u64,
    /// Time limit for requests in flight when the host stops, in ms. Default 10,000.
    pub shutdown_timeout_ms: u64,
    /// Origins that browsers may call from, or `*` for any. Default none.
    pub cors_origins: Vec<String>,
}

/// What every policy of this host is held to, whatever its manifest says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyLimits {
    /// Trusted publishers' minisign public keys, in base64. If there are any, only policies
    /// signed with one of them are published and loaded. Default none.
    pub trusted_keys: Vec<String>,
    /// Upper limit for `deadline_ms` of all policies, in ms, 1 to 1,000. A policy whose manifest
    /// allows more runs with this limit. Default 50.
    pub deadline_ms_max: u32,
    /// Processor time that each policy but the active one may use, in percent of the host's
    /// workers, 1 to 100. Further rankings are made by the active policy. Default 25.
    pub cpu_percent: u32,
    /// Memory for the instances of all policies together, in MiB, at least 64. Default 0: a
    /// quarter of the memory that the host may use.
    pub memory_mb: u64,
    /// Largest number of published versions. Default 10,000.
    pub versions_max: usize,
    /// Largest number of published `-dev.N` versions. Default 1,000.
    pub dev_versions_max: usize,
    /// Largest size of all published modules, in bytes. Default 8 GiB.
    pub modules_bytes_max: u64,
    /// Memory of the process that compiles and tries an upload, in MiB, at least 256. Default
    /// 2,048.
    pub admission_memory_mb: u64,
    /// Processor time of the process that compiles and tries an upload, in s, on all cores
    /// together. Default 240.
    pub admission_cpu_s: u64,
    /// Time in which the process that compiles and tries an upload must end, in s. Default 600.
    pub admission_wall_s: u64,
}

impl PolicyLimits {
    pub fn of_workers(&self) -> WorkerLimits {
        WorkerLimits {
            memory_mb: self.admission_memory_mb,
            cpu_s: self.admission_cpu_s,
            wall_s: self.admission_wall_s,
        }
    }

    pub fn quotas(&self) -> Quotas {
        Quotas {
            versions_max: self.versions_max,
            dev_versions_max: self.dev_versions_max,
            modules_bytes_max: self.modules_bytes_max,
        }
    }
}

impl Default for PolicyLimits {
    fn default() -> Self {
        let Quotas {
            versions_max,
            dev_versions_max,
            modules_bytes_max,
        } = Quotas::default();
        let WorkerLimits {
            memory_mb: admission_memory_mb,
            cpu_s: admission_cpu_s,
            wall_s: admission_wall_s,
        } = WorkerLimits::default();
        Self {
            trusted_keys: Vec::new(),
            deadline_ms_max: 50,
            cpu_percent: 25,
            memory_mb: 0,
            versions_max,
            dev_versions_max,
            modules_bytes_max,
            admission_memory_mb,
            admission_cpu_s,
            admission_wall_s,
        }
    }
}

/// Keys that authenticate the entries of the audit log. All hosts of one registry need the same.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Keys of at least 32 bytes each. The first one authenticates new entries, and former ones
    /// only verify. Default: a random key in the data directory of an embedded host, and none on
    /// the stack, whose hosts must share it.
    pub keys: Vec<String>,
    /// File with the keys, one in a line, in place of `keys`. Default none.
    pub keys_file: Option<PathBuf>,
}

/// Does not print the keys.
impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit")
            .field("keys", &self.keys.len())
            .field("keys_file", &self.keys_file)
            .finish()
    }
}

impl Audit {
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.keys.is_empty() && self.keys_file.is_some() {
            return Err("audit.keys and audit.keys_file are both set; set one of them".into());
        }
        secret_keys("audit.keys (NOVA_AUDIT_KEYS)", &self.keys).map(drop)
    }

    /// Returns the configured keys, also those in the file.
    ///
    /// # Errors
    /// The file cannot be read or trusted, or a key is weak.
    pub fn secret_keys(&self) -> anyhow::Result<Vec<SecretKey>> {
        let Some(path) = &self.keys_file else {
            return secret_keys("audit.keys (NOVA_AUDIT_KEYS)", &self.keys)
                .map_err(anyhow::Error::msg);
        };
        let name = format!("audit.keys_file {}", path.display());
        let lines = key_file::read_lines(path);
        let lines = lines.with_context(|| format!("could not read {name}"))?;
        anyhow::ensure!(
            !lines.is_empty(),
            "{name} has no key; write one random key in each line, such as the output of: openssl rand -hex 32"
        );
        secret_keys(&name, &lines).map_err(anyhow::Error::msg)
    }
}

fn secret_keys(name: &str, keys: &[String]) -> Result<Vec<SecretKey>, String> {
    let key = |key: &String| {
        SecretKey::new(key.as_bytes().to_vec()).map_err(|weak| {
            format!(
                "{name}: a key {weak}; give all hosts the same random keys, such as the output of: openssl rand -hex 32"
            )
        })
    };
    keys.iter().map(key).collect()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ttl {
    /// Largest age of cached candidates, in s. Default 120.
    pub candidates_s: u64,
    /// Largest age of a snapshot that is served again as a first page, in s. Default 120.
    pub snapshot_s: u64,
    /// Largest age of a trending list, in s. Default 60.
    pub trending_s: u64,
    /// Largest age of suggestions, in s. Default 600.
    pub suggestions_s: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// `off` disables rate limits, for load tests. Default on.
    pub rate_limit: Switch,
    /// Requests of one viewer per minute, without events. Default 300.
    pub viewer_requests_per_minute: u32,
    /// Event batches of one viewer per minute. Default 600.
    pub viewer_event_batches_per_minute: u32,
    /// Requests of one address per minute on open routes. Default 120.
    pub address_requests_per_minute: u32,
    /// Largest body of a request, in bytes. Default 1 MiB.
    pub body_bytes_max: usize,
    /// Largest body of a policy upload, in bytes. Default 64 MiB.
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
    /// Timeout of one candidate source, in ms. Default 2,000.
    pub source_timeout_ms: u64,
    /// Timeout of the timeline fallback, in ms. Default 500.
    pub timeline_timeout_ms: u64,
    /// Time that all policies of one request may use together, in ms. Default 250.
    pub policy_budget_ms: u64,
}

/// Error budget: conditions under which a policy is taken out of service automatically.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailureBudget {
    /// Number of failures in the window below which the policy stays in service. Default 5.
    pub min_failures: u32,
    /// Number of distinct viewers whose calls must have failed, at most 50. Default 3: one viewer
    /// who reloads takes no policy out of service.
    pub min_viewers: u32,
    /// Share of the window's calls that must have failed, 0.001 to 1. Default 0.05.
    pub ratio: f64,
    /// Length of the window, in s, at most 600. Default 30: a policy that always fails is taken
    /// out of service after 1.5 s, however many calls succeeded before.
    pub window_s: u64,
    /// Factor for latency: a canary or variation is taken out of service if its p99 is this many
    /// times that of the active policy and also at least a quarter of its own deadline. Default
    /// 3. 0 disables the check.
    pub p99_factor: f64,
    /// Number of calls that both policies need for the latency check. Default 200.
    pub p99_min_calls: u32,
}

impl FailureBudget {
    pub fn thresholds(&self) -> Thresholds {
        Thresholds {
            min_failures: self.min_failures,
            min_viewers: self.min_viewers,
            ratio: self.ratio,
            window_s: self.window_s,
            p99_factor: self.p99_factor,
            p99_min_calls: self.p99_min_calls,
        }
    }
}

impl Default for FailureBudget {
    fn default() -> Self {
        Self {
            min_failures: 5,
            min_viewers: 3,
            ratio: 0.05,
            window_s: 30,
            p99_factor: 3.0,
            p99_min_calls: 200,
        }
    }
}

/// Records: rankings that are stored with all their inputs, so that they can be replayed.
/// Rankings whose policy failed are always recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Records {
    /// Share of rankings that are recorded, 0 to 1. Default 0.01.
    pub sample_ratio: f64,
    /// Ids of viewers whose rankings are all recorded. Default none.
    pub viewers: BTreeSet<u64>,
    /// Largest size of the records and the modules that they need, in bytes. The oldest records
    /// are deleted first. Default 256 MiB.
    pub bytes_max: u64,
    /// Time for which a record is kept, in h. It is limited because a record shows what a viewer
    /// was shown. Default 168.
    pub age_max_h: u64,
}

/// Shadow runs: policies that rank the same requests as the serving policy, for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shadow {
    /// Processor time for all shadow policies together, in percent of one core, 0 to 100.
    /// Default 25. At 0 no shadow policy runs.
    pub cpu_percent: u32,
}

impl Default for Shadow {
    fn default() -> Self {
        Self { cpu_percent: 25 }
    }
}

/// Defaults of the feature flags. An operator's `PUT /admin/v1/flags/{name}` takes precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flags {
    /// If `false`, a request with `algo=ch` is served the timeline. Default true.
    pub use_ch_ranking: bool,
    /// If `false`, every feed is ranked again. Default true.
    pub enable_caching: bool,
    /// If `false`, a request gets a 503 instead of the fallback timeline. Default true.
    pub enable_fallback: bool,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("jwt_secret", &self.jwt_secret.as_ref().map(|_| "…"))
            .field("issuer", &self.issuer)
            .finish()
    }
}

impl Auth {
    /// Returns the configured key.
    ///
    /// # Errors
    /// The reason why it is weak, without the key itself.
    pub fn secret_key(&self) -> Result<Option<SecretKey>, String> {
        let Some(secret) = &self.jwt_secret else {
            return Ok(None);
        };
        SecretKey::new(secret.as_bytes().to_vec())
            .map(Some)
            .map_err(|weak| {
                format!(
                    "auth.jwt_secret (NOVA_JWT_SECRET) {weak}; give all hosts the same random key, such as the output of: openssl rand -hex 32"
                )
            })
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
            idle_timeout_ms: 75_000,
            body_timeout_ms: 10_000,
            drain_ms: 5_000,
            shutdown_timeout_ms: 10_000,
            cors_origins: Vec::new(),
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

    /// Sets a flag. An unknown name changes nothing, because it may come from a newer host.
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
