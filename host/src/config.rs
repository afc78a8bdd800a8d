//! Configuration: `nova.toml`, with an environment variable to override each key. An unknown key is
//! refused here, at the top level, and by the type of each section.
//!
//! Every field states its unit and default. `Live` is the part that may change while the host
//! runs. Changes to all other keys are logged and take effect at the next restart.

mod bounds;
pub mod origins;
mod sections;
mod variables;

pub use sections::{
    Audit, Auth, FailureBudget, Feed, Flags, Limits, LogFormat, PolicyLimits, Records, Server,
    Shadow, Stores, Switch, Ttl,
};
pub use variables::{PORT_VARIABLE, VARIABLES};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use variables::{NEVER_EMPTY, read_value, set};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address to listen on. Default 127.0.0.1:8080. `HTTP_PORT` changes only the port.
    pub listen: SocketAddr,
    /// Directory of all durable data. It needs a volume that outlives the process. Default
    /// ./nova-data.
    pub data_dir: PathBuf,
    /// Directory to watch for policies. Default: `policies` in the data directory.
    pub policies_dir: Option<PathBuf>,
    /// Number of threads for policies. Default 0: one per core.
    pub worker_concurrency: usize,
    /// `json` or `text`. Default json.
    pub log_format: LogFormat,
    pub stores: Stores,
    pub auth: Auth,
    pub audit: Audit,
    pub server: Server,
    pub policy: PolicyLimits,
    /// Largest size of accepted events that wait to be processed, in bytes. Default 1 GiB.
    pub spool_bytes_max: u64,
    /// Memory for snapshots and for cached candidates, in MiB for each of the two. Default 256.
    pub cache_mb: u64,
    #[serde(flatten)]
    pub live: Live,
}

/// Settings that can be reloaded while the host runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Live {
    /// Filter of the `tracing` crate: `info`, `nova=debug,warn`, … Default info.
    pub log_level: String,
    pub ttl: Ttl,
    pub limits: Limits,
    pub feed: Feed,
    pub failure_budget: FailureBudget,
    pub records: Records,
    pub shadow: Shadow,
    pub flags: Flags,
}

/// The live settings, shared by everything that reads them.
#[derive(Debug, Clone)]
pub struct SharedLive(Arc<ArcSwap<Live>>);

impl SharedLive {
    pub fn new(live: Live) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(live)))
    }

    pub fn load(&self) -> arc_swap::Guard<Arc<Live>> {
        self.0.load()
    }

    pub fn store(&self, live: Live) {
        self.0.store(Arc::new(live));
    }
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
            audit: Audit::default(),
            server: Server::default(),
            policy: PolicyLimits::default(),
            spool_bytes_max: 1 << 30,
            cache_mb: 256,
            live: Live::default(),
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

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read the configuration file {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("invalid configuration: {0}")]
    Invalid(String),
}

impl Config {
    /// Reads the file, if there is one, and applies the environment variables to it.
    ///
    /// # Errors
    /// An unreadable file, an unknown key, a value of the wrong type, a number outside of its
    /// bounds, or an incomplete set of store URLs.
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
        if let Some(name) = NEVER_EMPTY
            .iter()
            .find(|name| variable(name).is_some_and(|value| value.trim().is_empty()))
        {
            return Err(ConfigError::Invalid(format!(
                "{name} is set but empty; give it a value or unset it"
            )));
        }
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
                ConfigError::Invalid(format!(
                    "{PORT_VARIABLE}: `{port}` is not a port; use a number from 0 to 65535"
                ))
            })?;
            config.listen.set_port(port);
        }
        config.server.cors_origins = origins::normalised(&config.server.cors_origins)
            .map_err(|reason| ConfigError::Invalid(format!("server.cors_origins: {reason}")))?;
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
        self.auth
            .secret_key()
            .map_err(ConfigError::Invalid)
            .map(drop)?;
        self.audit.check().or_else(refuse)?;
        if tracing_subscriber::EnvFilter::try_new(&self.live.log_level).is_err() {
            return refuse(format!(
                "log_level: `{}` is not a filter such as info or nova=debug",
                self.live.log_level
            ));
        }
        bounds::check(self).or_else(refuse)
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

/// Refuses unknown keys at the top level. serde cannot combine `#[serde(flatten)]` with
/// `deny_unknown_fields`, so the check is made here.
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

/// Formats a parser error as one line. The parser's own text shows the position on several
/// lines.
fn with_line(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = 1 + before.unwrap_or_default().matches('\n').count();
    format!("line {line}: {}", error.message())
}

/// Finds the key that causes an error of the merged table, because that error has no position.
/// Every key has a default, so each key can be tried alone, and the wrong one fails.
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
        let accepted = bounds::of(&key).map(|bounds| format!("; choose a value within {bounds}"));
        let accepted = accepted.unwrap_or_default();
        Some(format!("{key}: {}{accepted}", error.message()))
    });
    wrong.unwrap_or_else(|| error.message().to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
