//! The real stack for one test: its own databases, topics and keys on the servers that the
//! environment names (`tests/services env`).

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::MetadataTopic;
use sqlx::{ConnectOptions as _, Connection as _};
use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tokio::sync::{
    OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock, Semaphore,
};

/// Returns a command for the program under test. It inherits only the variables with which it
/// finds other programs. A host that stops does not wait for load balancers, which no test has.
pub fn nova() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nova"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("NOVA_DRAIN_MS", "0");
    for name in ["HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Permits for the databases of Redis. Redis has 16 numbered databases, of which tests use 1 to
/// 15. A test takes one for itself, and waits while all are taken.
static REDIS_DATABASES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(15)));
static REDIS_DATABASES_TAKEN: Mutex<BTreeSet<u8>> = Mutex::new(BTreeSet::new());

#[derive(Debug)]
struct RedisDatabase {
    number: u8,
    _one_of_all: OwnedSemaphorePermit,
}

impl RedisDatabase {
    async fn take() -> Self {
        let one_of_all = REDIS_DATABASES.clone().acquire_owned().await.unwrap();
        let mut taken = REDIS_DATABASES_TAKEN.lock().unwrap();
        let number = (1..=15).find(|number| taken.insert(*number)).unwrap();
        Self {
            number,
            _one_of_all: one_of_all,
        }
    }
}

impl Drop for RedisDatabase {
    fn drop(&mut self) {
        REDIS_DATABASES_TAKEN.lock().unwrap().remove(&self.number);
    }
}

/// Lock on the servers. A test that stops a server holds it exclusively.
static SERVERS: LazyLock<Arc<RwLock<()>>> = LazyLock::new(Arc::default);

/// A test's lock on the servers, shared or exclusive. It is held while the test runs.
#[derive(Debug)]
#[expect(dead_code, reason = "held for its drop")]
enum Turn {
    Shared(OwnedRwLockReadGuard<()>),
    Alone(OwnedRwLockWriteGuard<()>),
}

/// Databases and addresses of one test. `nova` reads them as environment variables to run on the
/// stack.
#[derive(Debug)]
pub struct Stack {
    pub postgres_url: String,
    pub clickhouse_url: String,
    pub kafka_brokers: String,
    pub redis_url: String,
    pub kafka_prefix: String,
    name: String,
    servers: Servers,
    _redis_database: RedisDatabase,
    _turn: Turn,
}

/// Addresses of the servers, as the environment names them.
#[derive(Debug, Clone)]
pub struct Servers {
    pub postgres: String,
    pub clickhouse: String,
    pub kafka: String,
    pub redis: String,
}

impl Servers {
    /// Reads the addresses. If some are missing, prints that the test is skipped and returns
    /// `None`, or fails if `NOVA_REQUIRE_SERVICES=1`.
    pub fn from_environment() -> Option<Self> {
        let mut missing = Vec::new();
        let mut variable = |name: &'static str| {
            std::env::var(name).unwrap_or_else(|_| {
                missing.push(name);
                String::new()
            })
        };
        let servers = Self {
            postgres: variable("POSTGRES_URL"),
            clickhouse: variable("CLICKHOUSE_URL"),
            kafka: variable("KAFKA_BROKERS"),
            redis: variable("REDIS_URL"),
        };
        if missing.is_empty() {
            return Some(servers);
        }
        let missing = missing.join(", ");
        let required = std::env::var("NOVA_REQUIRE_SERVICES").is_ok_and(|value| value == "1");
        assert!(!required, "NOVA_REQUIRE_SERVICES=1 needs {missing}");
        eprintln!("skipped a test on the real stack: {missing} not set");
        None
    }
}

/// Returns the address of Redis, for tests that need no other server.
pub fn redis_url() -> Option<String> {
    let url = std::env::var("REDIS_URL").ok();
    if url.is_none() {
        let required = std::env::var("NOVA_REQUIRE_SERVICES").is_ok_and(|value| value == "1");
        assert!(!required, "NOVA_REQUIRE_SERVICES=1 needs REDIS_URL");
        eprintln!("skipped a test on Redis: REDIS_URL not set");
    }
    url
}

impl Stack {
    /// Creates empty databases and applies the schema.
    pub async fn migrated() -> Option<Self> {
        let turn = Turn::Shared(SERVERS.clone().read_owned().await);
        Self::empty(turn).await?.migrate()
    }

    /// Like `migrated`, but no other test uses the servers meanwhile, so this test may stop
    /// them.
    pub async fn alone() -> Option<Self> {
        let turn = Turn::Alone(SERVERS.clone().write_owned().await);
        Self::empty(turn).await?.migrate()
    }

    fn migrate(self) -> Option<Self> {
        let output = self.nova().arg("migrate").output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(self)
    }

    async fn empty(turn: Turn) -> Option<Self> {
        let servers = Servers::from_environment()?;
        let name = format!("nova_test_{}", uuid::Uuid::new_v4().simple());
        on_postgres(&servers.postgres, format!("CREATE DATABASE {name}")).await;
        on_clickhouse(&servers.clickhouse, format!("CREATE DATABASE {name}")).await;
        let with_path = |url: &str, path: &str| {
            let mut url = reqwest::Url::parse(url).unwrap();
            url.set_path(path);
            String::from(url)
        };
        let redis_database = RedisDatabase::take().await;
        let redis_url = with_path(&servers.redis, &redis_database.number.to_string());
        flush_redis(&redis_url).await;
        Some(Self {
            postgres_url: with_path(&servers.postgres, &name),
            clickhouse_url: with_path(&servers.clickhouse, &name),
            kafka_brokers: servers.kafka.clone(),
            redis_url,
            kafka_prefix: format!("{name}."),
            name,
            servers,
            _redis_database: redis_database,
            _turn: turn,
        })
    }

    /// Runs `tests/services ACTION NAME` to stop, start, restart or kill one server.
    pub fn service(&self, action: &str, name: &str) {
        let script = std::env::var("NOVA_SERVICES").unwrap();
        let output = std::process::Command::new(script)
            .args([action, name])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{action} {name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    pub fn variables(&self) -> [(&'static str, &str); 5] {
        [
            ("POSTGRES_URL", &self.postgres_url),
            ("CLICKHOUSE_URL", &self.clickhouse_url),
            ("KAFKA_BROKERS", &self.kafka_brokers),
            ("REDIS_URL", &self.redis_url),
            ("NOVA_KAFKA_PREFIX", &self.kafka_prefix),
        ]
    }

    /// Returns a command for the program, configured for this stack.
    pub fn nova(&self) -> std::process::Command {
        let mut command = nova();
        command.envs(self.variables());
        command
    }

    /// Runs one PostgreSQL statement in this test's database.
    pub async fn postgres(&self, statement: &str) {
        on_postgres(&self.postgres_url, statement.to_owned()).await;
    }

    /// Runs one ClickHouse query in this test's database and returns its rows as JSON.
    pub async fn clickhouse(&self, query: &str) -> Vec<serde_json::Value> {
        let text = on_clickhouse(&self.clickhouse_url, format!("{query} FORMAT JSONEachRow")).await;
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let (servers, name) = (self.servers.clone(), self.name.clone());
        let (redis, prefix) = (self.redis_url.clone(), self.kafka_prefix.clone());
        // The drop runs on its own thread, because the test's own runtime may be unwinding.
        let dropped = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async {
                    let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                    on_postgres(&servers.postgres, drop).await;
                    let drop = format!("DROP DATABASE IF EXISTS {name}");
                    on_clickhouse(&servers.clickhouse, drop).await;
                    flush_redis(&redis).await;
                    delete_topics(&servers.kafka, &prefix).await;
                });
        });
        let _ = dropped.join();
    }
}

async fn on_postgres(url: &str, statement: String) {
    let options = sqlx::postgres::PgConnectOptions::from_str(url).unwrap();
    let mut connection = options.connect().await.unwrap();
    // Names cannot be bound. These consist of hexadecimal digits, and the other statements are
    // constants of the tests.
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

async fn on_clickhouse(url: &str, statement: String) -> String {
    let mut url = reqwest::Url::parse(url).unwrap();
    let database = url.path().trim_matches('/').to_owned();
    url.set_path("/");
    if !database.is_empty() {
        url.query_pairs_mut().append_pair("database", &database);
    }
    let answer = reqwest::Client::new()
        .post(url)
        .body(statement.clone())
        .send()
        .await
        .unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{statement}: {text}");
    text
}

/// Deletes a test's topics. With sixty partitions per test, the broker would otherwise soon do
/// nothing but look after them. If the broker does not respond, the topics are kept.
pub async fn delete_topics(brokers: &str, prefix: &str) {
    let admin: AdminClient<DefaultClientContext> = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .unwrap();
    let Ok(metadata) = admin.inner().fetch_metadata(None, Duration::from_secs(5)) else {
        return;
    };
    let names = metadata.topics().iter().map(MetadataTopic::name);
    let names: Vec<&str> = names.filter(|name| name.starts_with(prefix)).collect();
    let _ = admin.delete_topics(&names, &AdminOptions::new()).await;
}

async fn flush_redis(url: &str) {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    // A load run leaves millions of members, so free them asynchronously and do not block Redis.
    let _: () = redis::cmd("FLUSHDB")
        .arg("ASYNC")
        .query_async(&mut connection)
        .await
        .unwrap();
}
