//! Tests against a real server; each test has its own database. If `CLICKHOUSE_URL` is not set,
//! the tests report that they were not run; with `NOVA_REQUIRE_SERVICES=1` they fail.

mod conformance;
mod counted_once;
mod daily;
mod schema;
mod speed;

use super::ClickHouseStore;
use clickhouse::{Client, RowOwned, RowRead};
use uuid::Uuid;

/// A test database; dropping this value drops the database.
struct TestDatabase {
    store: ClickHouseStore,
    url: String,
}

impl TestDatabase {
    /// Creates a database with the schema; `None` if there is no server.
    async fn migrated() -> Option<Self> {
        let this = Self::absent()?;
        this.store.migrate().await.unwrap();
        Some(this)
    }

    /// A database that has not been created yet; `None` if there is no server.
    fn absent() -> Option<Self> {
        let Ok(server) = std::env::var("CLICKHOUSE_URL") else {
            let is_required =
                std::env::var("NOVA_REQUIRE_SERVICES").is_ok_and(|value| value == "1");
            assert!(
                !is_required,
                "CLICKHOUSE_URL is not set, and NOVA_REQUIRE_SERVICES=1"
            );
            eprintln!("not run: CLICKHOUSE_URL is not set");
            return None;
        };
        let mut url = reqwest::Url::parse(&server).unwrap();
        url.set_path(&format!("nova_test_{}", Uuid::new_v4().simple()));
        let store = ClickHouseStore::connect(url.as_str()).unwrap();
        Some(Self {
            store,
            url: url.into(),
        })
    }

    /// A client for statements that no adapter sends.
    fn client(&self) -> &Client {
        &self.store.worker
    }

    async fn rows<T: RowOwned + RowRead>(&self, query: &str) -> Vec<T> {
        self.client().query(query).fetch_all().await.unwrap()
    }

    async fn number(&self, query: &str) -> u64 {
        self.client().query(query).fetch_one().await.unwrap()
    }

    async fn execute(&self, statement: &str) {
        self.client().query_raw(statement).execute().await.unwrap();
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let url = self.url.clone();
        // A separate thread, because the test's own runtime may be unwinding, and its
        // connections with it.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(drop_database(&url));
        });
        let _ = dropped.join();
    }
}

async fn drop_database(url: &str) {
    let store = ClickHouseStore::connect(url).unwrap();
    let outside = store.worker.clone().with_database("default");
    let query = outside.query("DROP DATABASE IF EXISTS {name:Identifier}");
    let _ = query.param("name", &store.database).execute().await;
}
