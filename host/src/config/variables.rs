//! Environment variables: the key that each variable overrides, and the conversion of its text.

use super::bounds;

/// Environment variables and the keys that they override. `.env.example` contains the same list;
/// a test checks that.
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
    ("NOVA_AUDIT_KEYS", "audit.keys"),
    ("NOVA_AUDIT_KEYS_FILE", "audit.keys_file"),
    ("NOVA_CONNECTIONS_MAX", "server.connections_max"),
    ("NOVA_HEADER_TIMEOUT_MS", "server.header_timeout_ms"),
    ("NOVA_IDLE_TIMEOUT_MS", "server.idle_timeout_ms"),
    ("NOVA_BODY_TIMEOUT_MS", "server.body_timeout_ms"),
    ("NOVA_DRAIN_MS", "server.drain_ms"),
    ("NOVA_SHUTDOWN_TIMEOUT_MS", "server.shutdown_timeout_ms"),
    ("NOVA_CORS_ORIGINS", "server.cors_origins"),
    ("NOVA_POLICY_TRUSTED_KEYS", "policy.trusted_keys"),
    ("NOVA_POLICY_DEADLINE_MS_MAX", "policy.deadline_ms_max"),
    ("NOVA_POLICY_CPU_PERCENT", "policy.cpu_percent"),
    ("NOVA_POLICY_MEMORY_MB", "policy.memory_mb"),
    ("NOVA_POLICY_VERSIONS_MAX", "policy.versions_max"),
    ("NOVA_POLICY_DEV_VERSIONS_MAX", "policy.dev_versions_max"),
    ("NOVA_POLICY_MODULES_BYTES_MAX", "policy.modules_bytes_max"),
    (
        "NOVA_POLICY_ADMISSION_MEMORY_MB",
        "policy.admission_memory_mb",
    ),
    ("NOVA_POLICY_ADMISSION_CPU_S", "policy.admission_cpu_s"),
    ("NOVA_POLICY_ADMISSION_WALL_S", "policy.admission_wall_s"),
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
    (
        "NOVA_FAILURE_BUDGET_MIN_VIEWERS",
        "failure_budget.min_viewers",
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

/// Variables whose empty value is refused. Other empty variables count as not set, but for these
/// a script that failed to find the value would silently switch a protection off.
pub(super) const NEVER_EMPTY: &[&str] = &[
    "NOVA_JWT_SECRET",
    "NOVA_POLICY_TRUSTED_KEYS",
    "NOVA_AUDIT_KEYS",
    "NOVA_AUDIT_KEYS_FILE",
];

/// Variable that changes only the port of `listen`.
pub const PORT_VARIABLE: &str = "HTTP_PORT";

/// Converts the text of an environment variable to a value of the type that the key needs.
pub(super) fn read_value(key: &str, text: &str) -> toml::Value {
    if [
        "audit.keys",
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
    // Text that is an integer or a boolean is converted; secrets and names stay text.
    let literal = !key.starts_with("auth.")
        && !key.starts_with("audit.")
        && !key.ends_with("_url")
        && !key.ends_with("_dir")
        && !["stores.kafka_brokers", "stores.kafka_prefix"].contains(&key);
    if bounds::of(key).is_some()
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

pub(super) fn set(table: &mut toml::Table, key: &str, value: toml::Value) {
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
